"""Plan a model's launch, or list the recipes, on the controller.

An action plugin and not a module, because it runs inside ansible-playbook: a module on localhost costs 0.3 s.
"""

from __future__ import annotations

from ansible.plugins.action import ActionBase
from ansible_collections.spark.control.plugins.module_utils import spark_recipe

ARGUMENTS = {
    "model": {"type": "str"},
    "recipe_dirs": {"type": "list", "elements": "path", "required": True},
    "nodes": {
        "type": "list",
        "elements": "dict",
        "default": [],
        "options": {"host": {"type": "str", "required": True}, "address": {"type": "str", "required": True}},
    },
    "port": {"type": "int", "default": 8888},
    "container": {"type": "str", "default": "vllm_node"},
}


class ActionModule(ActionBase):
    """See plugins/modules/recipe_plan.py for what it takes and returns."""

    TRANSFERS_FILES = False
    _requires_connection = False
    _supports_check_mode = True

    def run(self, tmp=None, task_vars=None):
        result = super().run(tmp, task_vars) | {"changed": False}
        _validation, given = self.validate_argument_spec(argument_spec=ARGUMENTS)
        model = given["model"]
        try:
            if model is not None:
                path = spark_recipe.find(model, given["recipe_dirs"])
                recipe = spark_recipe.load(path)
                plan = spark_recipe.render(recipe, given["nodes"], given["port"], container=given["container"])
                result |= {
                    "plan": plan,
                    "weights": spark_recipe.weights_of(plan),
                    "reason": None,
                    "msg": f"{plan['title']} is planned as {plan['mode']}.",
                }
            else:
                recipes = spark_recipe.listing(given["recipe_dirs"], given["nodes"], given["port"])
                result |= {"recipes": recipes, "reason": None, "msg": f"{len(recipes)} recipes."}
        except spark_recipe.RecipeError as error:
            result |= {"failed": True, "reason": error.reason, "msg": str(error), "messages": error.messages}
        return result
