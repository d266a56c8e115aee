"""What the simulated model answers to a conversation: words, or the call of a tool; decided by the words asked.

A conversation is a list of OpenAI's chat messages. What vLLM refuses about tools, and in which words, is from its
entrypoints/openai/chat_completion/protocol.py (check_tool_usage) and renderers/online_renderer.py (render_chat).
"""

import json
import re
import uuid

EDGES = ".,:;=?!\"'()[]{}"  # what is no part of a word


class Refused(ValueError):
    """A request that vLLM refuses. status: HTTP's; kind, parameter: the error's `type` and `param`."""

    def __init__(self, message, parameter=None, status=400, kind="BadRequestError"):
        super().__init__(message)
        self.parameter, self.status, self.kind = parameter, status, kind


def wrong(message, *where):
    """The Refused of a field that does not fit the request's schema, as FastAPI tells it. where: names and indices."""
    return Refused(f"1 validation error:\n  {{'loc': {('body', *where)!r}, 'msg': {message!r}}}", str(where[0]))


class Tools:
    """The functions that a request offers, and its choice among them.

    functions: {name: JSON schema of the parameters}, in the request's order.
    choice: "none", "auto", "required", or the name of one in a list: ["weather"].
    """

    def __init__(self, functions, choice):
        self.functions, self.choice = functions, choice

    @property
    def forced(self):
        """Whether a call is the only answer."""
        return self.choice not in ("none", "auto")

    def check(self, parses):
        """Raises Refused where the server was not launched to parse the calls that this needs."""
        if self.choice == "auto" and not parses:
            raise Refused('"auto" tool choice requires --enable-auto-tool-choice and --tool-call-parser to be set')
        if self.forced and not parses:
            told = f'function "{self.choice[0]}"' if isinstance(self.choice, list) else f'"{self.choice}"'
            raise Refused(f"tool_choice={told} requires --tool-call-parser to be set")

    def call(self, messages):
        """The (name, arguments as JSON text) of what is called for this conversation, or None."""
        asked = next((text_of(message) for message in reversed(messages) if message.get("role") == "user"), "")
        if self.choice == "none" or not self.functions:
            return None
        if isinstance(self.choice, list):
            name = self.choice[0]
        elif self.choice == "required":
            name = next(iter(self.functions))
        elif messages[-1].get("role") == "tool":
            return None
        else:
            name = next((name for name in self.functions if name.lower() in asked.lower()), None)
        return name and (name, json.dumps(arguments(self.functions[name], asked), ensure_ascii=False))


class Reply:
    """One answer: `tokens` are its text, or with a `name` the JSON of the arguments that function is called with.

    reason: "stop", or "length" where `limit` tokens were not enough. A call is never cut.
    """

    def __init__(self, messages, tools, limit):
        self.name = None
        if called := tools.call(messages):
            self.name, text = called
            self.tokens, self.reason = re.findall(r"\s*\S+", text), "stop"
            return
        if messages[-1].get("role") == "tool":
            text = f"The tool said: {text_of(messages[-1]).strip()}"
        else:
            asked = text_of(messages[-1]).strip() or "nothing"
            text = f"You said: {asked} I am a simulated model, so that is all I know."
        self.tokens, self.reason = cut(text, limit)

    @property
    def text(self):
        return "".join(self.tokens)


def cut(text, limit):
    """(tokens, why they end) of at most `limit` tokens of a text, None = all."""
    words = text.split()
    tokens = [word if number == 0 else f" {word}" for number, word in enumerate(words)][:limit]
    return tokens, "length" if limit is not None and limit < len(words) else "stop"


def checked_limit(limit):
    """The most tokens of an answer, None = any. Raises Refused."""
    if limit is not None and (not isinstance(limit, int) or limit < 1):
        raise Refused(f"max_tokens must be at least 1, got {limit}.", "max_tokens")
    return limit


def count(messages):
    """About how many tokens a prompt has."""
    return max(len(text_of(messages[-1]).split()), 1) + 8


def text_of(message):
    """A message's text. Content may be a string or OpenAI's list of parts."""
    content = message["content"]
    if isinstance(content, list):
        return " ".join(part.get("text", f"[{part.get('type', 'part')}]") for part in content)
    return str(content or "")


def unique():
    return uuid.uuid4().hex


# --- the tools of a request -------------------------------------------------------------------------------------------


def functions_of(tools, inner):
    """{name: schema} of a request's `tools`. inner: the key that holds a function, None = the tool itself.

    A tool of another type is passed over, as vLLM without a tool server does. Raises Refused.
    """
    if not isinstance(tools, list):
        raise wrong("Input should be a valid list", "tools")
    found = {}
    for number, tool in enumerate(tools):
        if not isinstance(tool, dict):
            raise wrong("Input should be a valid dictionary", "tools", number)
        if inner is None and tool.get("type") != "function":
            continue
        where = ("tools", number, *([inner] if inner else []))
        function = tool.get(inner) if inner else tool
        if not isinstance(function, dict):
            raise wrong("Field required" if function is None else "Input should be a valid dictionary", *where)
        if not isinstance(function.get("name"), str):
            raise wrong("Input should be a valid string" if "name" in function else "Field required", *where, "name")
        if not isinstance(function.get("parameters") or {}, dict):
            raise wrong("Input should be a valid dictionary", *where, "parameters")
        found[function["name"]] = function.get("parameters") or {}
    return found


def chat_tools(request):
    """The Tools of a chat request. Raises Refused."""
    tools, choice = request.get("tools"), request.get("tool_choice")
    if tools == []:
        raise Refused(
            "`tools` must not be an empty array. Either provide at least one tool or omit the field entirely.", "tools"
        )
    functions = {} if tools is None else functions_of(tools, "function")
    choice = choice or ("auto" if functions else "none")
    if choice != "none" and not functions:
        raise Refused("When using `tool_choice`, `tools` must be set.", "tool_choice")
    if isinstance(choice, dict):
        choice = [named(choice.get("function"), functions)]
    elif choice not in ("none", "auto", "required"):
        raise Refused(
            f'Invalid value for `tool_choice`: {choice}! Only named tools, "none", "auto" or "required" are supported.',
            "tool_choice",
        )
    return Tools(functions, choice)


def named(function, functions):
    """The name in a `tool_choice` that names a function. Raises Refused."""
    usage = 'Correct usage: `{"type": "function", "function": {"name": "my_function"}}`'
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise Refused(f"Invalid value for `function`: `{function}` in `tool_choice`! {usage}", "tool_choice.function")
    if function["name"] not in functions:
        raise Refused("The tool specified in `tool_choice` does not match any of the specified `tools`", "tool_choice")
    return function["name"]


# --- what a tool is called with ---------------------------------------------------------------------------------------


def arguments(schema, asked):
    """An object that fits a function's JSON schema: its simple properties and those that are required."""
    properties = {name: part for name, part in (schema.get("properties") or {}).items() if isinstance(part, dict)}
    made = {}
    for name, part in properties.items():
        kind = kind_of(part)
        if part.get("enum"):
            made[name] = part["enum"][0]
        elif kind == "string":
            made[name] = words_after(name, asked, set(properties) - {name})
        elif kind in ("integer", "number"):
            found = re.search(r"-?\d+(\.\d+)?", asked)
            number = float(found[0]) if found else 0
            made[name] = int(number) if kind == "integer" or number.is_integer() else number
        elif kind == "boolean":
            made[name] = True
        elif name in (schema.get("required") or ()):
            made[name] = [] if kind == "array" else None if kind == "null" else {}
    return made


def kind_of(schema):
    """A property's JSON type; of several, as pydantic writes an optional one, the first."""
    kind = (schema.get("anyOf") or [schema])[0].get("type")
    return kind[0] if isinstance(kind, list) else kind


def words_after(name, asked, others):
    """The words asked that follow a property's name, up to another's; the last word where it is not named."""
    words = [word for word in (word.strip(EDGES) for word in asked.split()) if word]
    lower = [word.lower() for word in words]
    if name.lower() not in lower:
        return words[-1] if words else ""
    start = end = lower.index(name.lower()) + 1
    while end < len(words) and lower[end] not in {other.lower() for other in others}:
        end += 1
    return " ".join(words[start:end])
