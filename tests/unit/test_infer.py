"""Launch flags inferred from what a scan found: the right ones by family and size, nothing hostile in any of them."""

from __future__ import annotations

import json
import re

import pytest
import yaml
from ansible_collections.spark.control.plugins.module_utils import spark_infer, spark_recipe, spark_recipe_file
from ansible_collections.spark.control.plugins.module_utils.spark_launcher import SHAPES
from hypothesis import given
from hypothesis import strategies as st

GIB = 2**30
SEPTEMBER, JANUARY = SHAPES["september"], SHAPES["january"]


def facts(**values):
    """A scan entry's facts, each with where it stands."""
    return {name: {"value": value, "file": "config.json", "key": name} for name, value in values.items()}


def entry(name="org/model", weights=20, kind="cache", **values):
    """A model in a scan: dense, 32k of context, where nothing else is said."""
    shape = {
        "architecture": "LlamaForCausalLM", "model_type": "llama", "layers": 32, "kv_heads": 8, "head_dim": 128,
        "context": 32768, "chat_template": True,
    } | values  # fmt: skip
    shape = {key: value for key, value in shape.items() if value is not None}
    return {
        "name": name, "repo": name if kind == "cache" else None, "kind": kind, "state": "complete",
        "weights_bytes": int(weights * GIB), "facts": facts(**shape),
    }  # fmt: skip


def sparks(count=2, total=121.6, available=115, held=0):
    """Sparks as the probes tell them."""
    sizes = {"total": int(total * GIB), "available": int(available * GIB), "held": int(held * GIB)}
    return [{"host": f"spark{n}"} | sizes for n in range(1, count + 1)]


def suggest(*arguments, there=None, **values):
    """A suggestion that is one."""
    made = spark_infer.suggest(entry(*arguments, **values), sparks() if there is None else there)
    assert made["recipe"], made["reason"]
    return made


def flag(made, name):
    """A flag's row, None where it is left out."""
    return next((row for row in made["flags"] if row["flag"] == name), None)


def value(made, name):
    """A flag's value."""
    return (flag(made, name) or {}).get("value")


# (model_type, architecture, name, tool-call parser, reasoning parser)
FAMILIES = [
    ("qwen2", "Qwen2ForCausalLM", "Qwen/Qwen2.5-7B-Instruct", "hermes", None),
    ("qwen2", "Qwen2ForCausalLM", "Qwen/QwQ-32B", "hermes", "deepseek_r1"),
    ("qwen3", "Qwen3ForCausalLM", "Qwen/Qwen3-32B", "hermes", "qwen3"),
    ("qwen3_moe", "Qwen3MoeForCausalLM", "Qwen/Qwen3-30B-A3B-Thinking-2507", "hermes", "qwen3"),
    ("qwen3_moe", "Qwen3MoeForCausalLM", "Qwen/Qwen3-Coder-30B-A3B-Instruct", "qwen3_coder", None),
    ("qwen3_next", "Qwen3NextForCausalLM", "Qwen/Qwen3-Coder-Next-FP8", "qwen3_coder", None),
    ("qwen3_5_moe", "Qwen3_5MoeForConditionalGeneration", "Qwen/Qwen3.5-122B-A10B-FP8", "qwen3_coder", "qwen3"),
    ("qwen3_5_moe", "Qwen3_5MoeForConditionalGeneration", "Qwen/Qwen3.6-35B-A3B-FP8", "qwen3_coder", "qwen3"),
    ("gemma3", "Gemma3ForConditionalGeneration", "google/gemma-3-27b-it", None, None),
    ("gemma4", "Gemma4ForConditionalGeneration", "google/gemma-4-26B-A4B-it", "gemma4", "gemma4"),
    ("llama", "LlamaForCausalLM", "meta-llama/Llama-3.3-70B-Instruct", "llama3_json", None),
    ("llama4", "Llama4ForConditionalGeneration", "meta-llama/Llama-4-Scout-17B-16E", "llama4_pythonic", None),
    ("llama", "LlamaForCausalLM", "NousResearch/Hermes-3-Llama-3.1-8B", "hermes", None),
    ("llama", "LlamaForCausalLM", "deepseek-ai/DeepSeek-R1-Distill-Llama-8B", None, "deepseek_r1"),
    ("mistral", "MistralForCausalLM", "mistralai/Mistral-Small-3.2-24B", "mistral", None),
    ("mistral3", "Mistral3ForConditionalGeneration", "mistralai/Magistral-Small-2509", "mistral", "mistral"),
    ("minimax_m2", "MiniMaxM2ForCausalLM", "MiniMaxAI/MiniMax-M2.5", "minimax_m2", "minimax_m2"),
    ("glm4_moe", "Glm4MoeForCausalLM", "zai-org/GLM-4.6", "glm45", "glm45"),
    ("glm4_moe", "Glm4MoeForCausalLM", "zai-org/GLM-4.7-FP8", "glm47", "glm45"),
    ("glm_moe_dsa", "GlmMoeDsaForCausalLM", "zai-org/GLM-5", "glm47", "glm45"),
    ("deepseek_v3", "DeepseekV3ForCausalLM", "deepseek-ai/DeepSeek-V3-0324", "deepseek_v3", None),
    ("deepseek_v3", "DeepseekV3ForCausalLM", "deepseek-ai/DeepSeek-R1-0528", "deepseek_v3", "deepseek_r1"),
    ("deepseek_v3", "DeepseekV3ForCausalLM", "deepseek-ai/DeepSeek-V3.1", "deepseek_v31", "deepseek_v3"),
    ("gpt_oss", "GptOssForCausalLM", "openai/gpt-oss-120b", "openai", "openai_gptoss"),
    ("kimi_k2", "DeepseekV3ForCausalLM", "moonshotai/Kimi-K2-Thinking", "kimi_k2", "kimi_k2"),
    ("nemotron_h", "NemotronHForCausalLM", "nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B", "qwen3_coder", "nemotron_v3"),
    ("granitemoehybrid", "GraniteMoeHybridForCausalLM", "ibm-granite/granite-4.0-h-small", "granite4", None),
    ("phi3", "Phi3ForCausalLM", "microsoft/Phi-4-mini-instruct", "phi4_mini_json", None),
    ("phi3", "Phi3ForCausalLM", "microsoft/phi-4", None, None),
]


@pytest.mark.parametrize(("kind", "architecture", "name", "tool", "reasoning"), FAMILIES, ids=lambda v: str(v)[-30:])
def test_parsers_by_family(kind, architecture, name, tool, reasoning):
    marks = ["<think>"] if reasoning else None
    made = suggest(name, model_type=kind, architecture=architecture, reasoning_markers=marks)
    assert value(made, "--tool-call-parser") == tool
    assert value(made, "--reasoning-parser") == reasoning
    assert (flag(made, "--enable-auto-tool-choice") is not None) == (tool is not None)
    for row in made["flags"]:
        assert row["reason"].endswith("."), row
        assert row["confidence"] in ("high", "medium", "low"), row


def test_a_flag_says_where_it_comes_from_and_a_guess_carries_a_warning():
    sure = suggest("Qwen/Qwen3-32B", model_type="qwen3", tool_markers=["<tool_call>"], reasoning_markers=["<think>"])
    tool = flag(sure, "--tool-call-parser")
    assert tool["source"] == {"file": "config.json", "key": "tool_markers"}
    assert (tool["confidence"], tool["warning"]) == ("high", None)
    guess = flag(suggest("Qwen/Qwen3-32B", model_type="qwen3", chat_template=None), "--tool-call-parser")
    assert (guess["confidence"], guess["source"]["key"]) == ("low", "model_type")
    assert "by its family alone" in guess["warning"]


def test_a_fine_tune_goes_by_its_chat_template():
    made = suggest("me/tune", tool_markers=["<tool_call>", "<function="])
    assert value(made, "--tool-call-parser") == "qwen3_coder"
    assert flag(made, "--tool-call-parser")["warning"] == "This goes by its chat template alone."
    renamed = suggest("me/qwen3-tune", model_type="qwen3", tool_markers=["<tool_call>", "<function="])
    assert value(renamed, "--tool-call-parser") == "qwen3_coder"


@pytest.mark.parametrize(
    ("kind", "quantization", "backend", "confidence"),
    [
        ("qwen3_moe", None, "flashinfer_cutlass", "medium"),
        ("qwen3_5_moe", "fp8", "flashinfer_cutlass", "low"),
        ("qwen3_moe", "nvfp4", "marlin", "high"),
        ("qwen3_moe", "awq", None, None),
        ("gemma4", "nvfp4", "marlin", "high"),
        ("gemma4", "fp8", "marlin", "high"),
        ("gemma4", None, "marlin", "low"),
        ("deepseek_v3", "nvfp4", "marlin", "high"),
        ("deepseek_v3", None, None, None),
        ("gpt_oss", "mxfp4", None, None),
    ],
)
def test_the_backend_of_the_experts(kind, quantization, backend, confidence):
    made = suggest(model_type=kind, architecture="XForCausalLM", experts=128, quantization=quantization)
    row = flag(made, "--moe-backend")
    assert (row and row["value"], row and row["confidence"]) == (backend, confidence)
    assert row is None or row["confidence"] != "low" or row["warning"]
    if row is None:
        assert "--moe-backend" in [left["flag"] for left in made["left_out"]]


def test_a_dense_model_has_no_backend_for_experts():
    assert flag(suggest(quantization="nvfp4"), "--moe-backend") is None


def test_a_name_may_tell_that_there_are_experts():
    made = suggest("nvidia/Gemma-4-26B-A4B-NVFP4", model_type="gemma4", quantization="nvfp4")
    assert value(made, "--moe-backend") == "marlin"


def test_quantisation_is_left_to_vllm_with_a_reason():
    made = suggest(quantization="fp8")
    left = next(row for row in made["left_out"] if row["flag"] == "--quantization")
    assert "reads fp8 from the model's own configuration" in left["reason"]
    assert left["source"] == {"file": "config.json", "key": "quantization"}
    assert value(made, "--kv-cache-dtype") == "fp8"


def test_solo_or_cluster_by_size():
    assert (suggest(weights=20)["mode"], suggest(weights=20)["nodes"]) == ("solo", 1)
    pair = suggest(weights=112)
    assert (pair["mode"], pair["nodes"], value(pair, "--tensor-parallel-size")) == ("cluster", 2, "2")
    assert pair["recipe"]["cluster_only"] is True
    assert [row["host"] for row in pair["fit"]] == ["spark1", "spark2"]
    assert all(row["ok"] for row in pair["fit"])
    four = spark_infer.suggest(entry(weights=372), sparks(2))
    assert four["recipe"] is None
    assert four["reason"] == "Its weights take 372 GB: it needs 4 Sparks, and there are 2."
    assert suggest(weights=372, there=sparks(5))["nodes"] == 4
    alone = spark_infer.suggest(entry(weights=112), sparks(1))
    assert "it needs 2 Sparks, and there is one." in alone["reason"]


def test_a_person_may_choose_the_number_of_sparks():
    two = spark_infer.suggest(entry(weights=20), sparks(2), nodes=2)
    assert (two["mode"], value(two, "--tensor-parallel-size")) == ("cluster", "2")
    one = spark_infer.suggest(entry(weights=112), sparks(2), nodes=1)
    assert (one["recipe"], one["reason"]) == (None, "Its weights take 112 GB: it needs 2 Sparks.")
    assert "3 were asked for" in spark_infer.suggest(entry(), sparks(4), nodes=3)["reason"]


def test_a_flag_is_taken_out_by_its_words_and_changed_in_the_defaults():
    made = suggest(model_type="qwen3_moe", experts=8, vision=True)
    recipe = made["recipe"]
    for row in made["flags"]:
        assert f" {row['words']}" in recipe["command"]
    less = recipe | {"command": recipe["command"].replace(f" {flag(made, '--moe-backend')['words']}", "")}
    less["defaults"] = recipe["defaults"] | {"max_model_len": 8192}
    less["defaults"].pop("moe_backend")
    plan = render(made | {"text": spark_recipe_file.compose("x", less)})
    assert "--moe-backend" not in plan["argv"]
    assert plan["memory"]["max_model_len"] == 8192


def test_the_context_is_what_fits_and_says_so():
    whole = flag(suggest(context=32768), "--max-model-len")
    assert (whole["value"], whole["confidence"], whole["warning"]) == ("32768", "high", None)
    short = flag(suggest(weights=60, layers=80, context=200000, there=sparks(1)), "--max-model-len")
    assert int(short["value"]) % 1024 == 0
    assert 32768 <= int(short["value"]) < 200000
    assert f"The model can take 200,000 tokens; {int(short['value']):,} is what fits" in short["warning"]
    longest = flag(suggest(weights=4, layers=8, context=10_485_760), "--max-model-len")
    assert longest["value"] == "262144"
    assert "10,485,760" in longest["warning"]


def test_facts_that_are_missing_are_said():
    bare = suggest(layers=None, context=None)
    assert flag(bare, "--max-model-len") is None
    unknown = flag(suggest(layers=None, context=131072), "--max-model-len")
    assert (unknown["value"], unknown["confidence"]) == ("32768", "low")
    assert "is not known" in unknown["warning"]
    hollow = suggest(weights=0)
    assert any("size of its weights is not known" in text for text in hollow["warnings"])
    assert flag(hollow, "--gpu-memory-utilization")["confidence"] == "low"
    reckoned = suggest(weights=0, parameters=8 * 10**9)
    assert any("reckoned from its number of parameters" in text for text in reckoned["warnings"])


def test_what_others_hold_counts():
    busy = suggest(there=sparks(1, available=60))
    assert busy["recipe"]["defaults"]["gpu_memory_utilization"] <= 60 / 121.6
    assert suggest(there=sparks(1, available=10, held=105))["fit"][0]["ok"]


def test_without_an_answer_of_any_spark_there_is_a_guess():
    made = suggest(there=[])
    assert made["fit"] == []
    assert "No Spark answered" in made["warnings"][0]


def test_remote_code_only_where_the_model_brings_some():
    assert flag(suggest(), "--trust-remote-code") is None
    assert flag(suggest(auto_map="yes"), "--trust-remote-code") is None
    row = flag(suggest(auto_map=True), "--trust-remote-code")
    assert "look at them first" in row["warning"]


def test_images():
    made = suggest(vision=True)
    plan = render(made)
    assert plan["argv"][plan["argv"].index("--limit-mm-per-prompt") + 1] == '{"image": 4}'
    assert plan["vision"] is True


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"adapter": True}, "adapter"),
        ({"embedding": True}, "embeddings"),
        ({"quantization": "gguf"}, "GGUF"),
        ({"architecture": "BertForMaskedLM", "model_type": "bert"}, "writes no text"),
        ({"architecture": "WhisperForConditionalGeneration", "model_type": "whisper"}, "writes no text"),
        ({"architecture": None, "model_type": None}, "Nothing says what it is"),
        ({"name": "no-slash"}, "no repository's name"),
        ({"name": "/srv/my models/x", "kind": "local"}, "rename the folder"),
        ({"name": "/srv/../x", "kind": "local"}, "rename the folder"),
        ({"name": "/usr/x", "kind": "local"}, "which a container has itself"),
    ],
)
def test_what_cannot_be_served_says_why(other, words):
    made = spark_infer.suggest(entry(**other), sparks())
    assert made["recipe"] is None
    assert made["text"] is None
    assert words in made["reason"]


def test_an_unknown_architecture_is_a_guess():
    made = suggest(architecture="ZebraForCausalLM", model_type="zebra")
    assert made["confidence"] == "low"
    assert any("family is not known" in text for text in made["warnings"])
    odd = suggest(architecture="ZebraThing", model_type="zebra")
    assert "Whether vLLM can serve its architecture is not known: ZebraThing." in odd["warnings"]


def test_a_local_model_is_mounted_read_only_in_both_launchers():
    made = suggest("/srv/models/my-tune", kind="local")
    assert (made["repo"], made["path"]) == (None, "/srv/models/my-tune")
    plan = render(made)
    assert plan["mounts"] == [{"source": "/srv/models/my-tune", "target": "/srv/models/my-tune", "read_only": True}]
    assert plan["argv"][:3] == ["vllm", "serve", "/srv/models/my-tune"]
    assert plan["digest"] != spark_recipe.digest(plan | {"mounts": []})
    for launcher in (SEPTEMBER, JANUARY):
        call = launcher.call(plan)
        said = call.environment["VLLM_SPARK_EXTRA_DOCKER_ARGS"]
        assert said == "-v /srv/models/my-tune:/srv/models/my-tune:ro"


@pytest.mark.parametrize(
    "path", ["/", "/a:b", "/a,b", "/a b", "/a/../b", "/a\nb", "/a/./b", "/a//b", "/a/", "/é", "/proc/1", "/root", "/$x"]
)
def test_no_odd_folder_is_mounted(path):
    fields = {"recipe_version": "1", "name": "x", "container": "c", "model": path, "command": "vllm serve x"}
    with pytest.raises(spark_recipe.RecipeError) as why:
        spark_recipe.from_mapping(fields, "x")
    assert "model: expected" in str(why.value)


def test_names_are_unique_and_harmless():
    taken = {"qwen3-32b", "qwen3-32b-2"}
    assert spark_infer.suggest(entry("Qwen/Qwen3-32B"), sparks(), taken)["name"] == "qwen3-32b-3"
    local = entry("/srv/models/Ünï ✓", kind="local")
    assert spark_recipe.NAME.fullmatch(spark_infer.suggest(local, sparks())["name"])


def render(made, count=None):
    """The plan of a suggestion, out of its text as a file has it."""
    nodes = [{"host": f"spark{n}", "address": f"10.0.0.{n}"} for n in range(1, (count or made["nodes"]) + 1)]
    fields = yaml.safe_load(made["text"])
    return spark_recipe.render(spark_recipe.from_mapping(fields, made["name"]), nodes, 8888)


HOSTILE = [
    "a\nb",
    "'",
    '"',
    "{x}",
    "{{ 1 }}",
    "$(id)",
    "`id`",
    "ünï 漢字 🚀",
    "--x",
    "\\",
    "*",
    "x: y",
    "# x",
    "\x00",
    "~",
]
TEXTS = st.one_of(st.text(max_size=12), st.sampled_from(HOSTILE))
VALUES = st.one_of(
    TEXTS, st.integers(), st.booleans(), st.none(), st.floats(), st.lists(TEXTS, max_size=3), st.integers(1, 300_000)
)
KNOWN = [
    "architecture", "model_type", "parameters", "experts", "quantization", "quantization_detail", "dtype", "context",
    "vision", "layers", "kv_heads", "head_dim", "mla", "hybrid", "attention_layers", "sliding_window", "tool_markers",
    "reasoning_markers", "chat_template", "embedding", "adapter", "auto_map",
]  # fmt: skip
FACTS = st.dictionaries(
    st.sampled_from(KNOWN),
    st.one_of(VALUES, st.sampled_from(["LlamaForCausalLM", "qwen3_moe", "gemma4", "nvfp4", "fp8"])),
)
NAMES = st.one_of(
    st.sampled_from(["org/model", "/srv/models/x", "Qwen/Qwen3-30B-A3B", "/srv/mödel", "a/b'c", "o/$(id)", "/a b"]),
    st.builds("{}/{}".format, TEXTS, TEXTS),
    TEXTS.map("/srv/".__add__),
)
PLAIN_WORD = r"[A-Za-z0-9][A-Za-z0-9_./=+@%-]*|--[a-z-]+|/[A-Za-z0-9_./=+@%-]+|\{\"image\": 4\}"


@given(NAMES, FACTS, st.sampled_from(["cache", "local"]), st.one_of(st.integers(0, 2**40), VALUES), st.integers(0, 4))
def test_whatever_a_model_says_of_itself_the_recipe_loads_and_holds_only_literals(name, shape, kind, size, count):
    said = entry(name, kind=kind, **shape) | {"weights_bytes": size}
    said["facts"] = facts(**({"architecture": "LlamaForCausalLM"} | shape))
    made = spark_infer.suggest(said, sparks(count))
    json.dumps({key: made[key] for key in made}, allow_nan=False)
    if made["recipe"] is None:
        assert made["reason"]
        return
    # The form of it that is saved reads as the one that was shown, and as the one that is planned.
    text = spark_recipe_file.compose(made["name"], made["recipe"])
    assert text == made["text"]
    plan = render(made)

    assert plan["script"] is None
    assert plan["argv"][2] == name
    assert all(re.fullmatch(PLAIN_WORD, word) for word in plan["argv"]), plan["argv"]
    assert plan["port"] == 8888
    for launcher in (SEPTEMBER, JANUARY):
        launcher.call(plan)
