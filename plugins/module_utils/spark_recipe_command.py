"""From a recipe's `command` to the words or the script that serve it: placeholders, node count, the house's port.

The two formats write placeholders differently. v1 is Python's str.format: `{name}`, a literal brace doubled. v2
replaces `{name}` wherever the name is known, repeatedly, and leaves every other brace alone.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from .spark_launch_args import quote
from .spark_recipe_memory import PARALLEL, first, flags, whole
from .spark_recipe_shell import QUOTABLE, Reader, ShellError, Slot, commands, fill, plain, reread

_HOUSE = ("port", "host")
_SIZES = ("tensor_parallel", "pipeline_parallel", "data_parallel")
_LAUNCHER_FLAGS = ("--nnodes", "--node-rank", "--master-addr", "--master-port", "--headless")
_BACKEND = "--distributed-executor-backend"
# Commands in whose words any value may stand; elsewhere only one that no program reads anything into.
_TAKES_VALUES = {"export", "echo", "cd", "mkdir"}
# Flags text in an author's defaults; see `_values`.
_FLAGS_TEXT = re.compile(r"[A-Za-z0-9_./:=,+@% \t-]*")

# v2 without a command: vLLM's flag for each key of `defaults`, in the order in which they are written.
FLAGS = {
    "served_model_name": "--served-model-name", "host": "--host", "port": "--port", "tensor_parallel": "-tp",
    "pipeline_parallel": "-pp", "data_parallel": "--data-parallel-size", "dtype": "--dtype",
    "quantization": "--quantization", "gpu_memory_utilization": "--gpu-memory-utilization",
    "max_model_len": "--max-model-len", "max_num_seqs": "--max-num-seqs",
    "max_num_batched_tokens": "--max-num-batched-tokens", "kv_cache_dtype": "--kv-cache-dtype",
    "block_size": "--block-size", "load_format": "--load-format", "attention_backend": "--attention-backend",
    "moe_backend": "--moe-backend", "mamba_backend": "--mamba-backend", "tokenizer_mode": "--tokenizer-mode",
    "chat_template": "--chat-template", "tool_call_parser": "--tool-call-parser",
    "reasoning_parser": "--reasoning-parser", "speculative_config": "--speculative-config",
    "compilation_config": "--compilation-config", "hf_overrides": "--hf-overrides",
    "override_generation_config": "--override-generation-config", "limit_mm_per_prompt": "--limit-mm-per-prompt",
    "mm_encoder_tp_mode": "--mm-encoder-tp-mode", "optimization_level": "--optimization-level", "runner": "--runner",
    "otlp_traces_endpoint": "--otlp-traces-endpoint",
    "enforce_eager": "--enforce-eager", "enable_prefix_caching": "--enable-prefix-caching",
    "enable_chunked_prefill": "--enable-chunked-prefill", "enable_expert_parallel": "--enable-expert-parallel",
    "enable_auto_tool_choice": "--enable-auto-tool-choice", "trust_remote_code": "--trust-remote-code",
    "async_scheduling": "--async-scheduling", "language_model_only": "--language-model-only",
}  # fmt: skip


@dataclass
class Launch:
    """A rendered command. Exactly one of argv and script is set; as_script is the text either way."""

    argv: list[str] | None
    script: str | None
    as_script: str
    flags: dict
    parallel: tuple[int, int, int]
    served_name: str | None
    warnings: list[str]


def template(command, version, defaults, faults, warnings, label):
    """The units of an author's command; adds to faults what stands where no value can be put."""
    before = len(faults)
    text = re.sub(r"\\[ \t]+(?=\n)", "\\\\", command.replace("\r\n", "\n")).strip()
    if version == "1":
        # eugr's launcher drops such lines from every command it starts, so authors rely on it.
        text = "\n".join(line for line in text.split("\n") if line.strip() not in ("", "\\"))
    text = re.sub(r"[\\\s]+\Z", "", text)
    units = _format_units(text, faults) if version == "1" else _brace_units(text, warnings, label)
    if len(faults) > before:
        return units
    known = {*defaults, "model", *_HOUSE, *_SIZES}
    for slot in dict.fromkeys(u for u in units if isinstance(u, Slot)):
        if slot.name not in known:
            faults.append(f"command: {{{slot.name}}}: expected a name from defaults ({', '.join(sorted(known))})")
        elif isinstance(defaults.get(slot.name, ""), (dict, list)) or defaults.get(slot.name, "") is None:
            faults.append(f"defaults.{slot.name}: expected text, a number or true or false, for {{{slot.name}}}")
    try:
        reader = Reader(units)
    except ShellError as error:
        faults.append(f"command: expected shell text, got one where {error}")
        return units
    for place in reader.places:
        if place.where not in QUOTABLE:
            faults.append(f"command: {{{place.slot.name}}} stands in {place.where}, expected it in a word or in quotes")
    if len(faults) == before and not any(_serve(c) for c in commands(reader.tokens)):
        got = text.split("\n")[0][:60]
        faults.append(f"command: expected a `vllm serve …` command, got {got!r}")
    return units


def build(model, defaults, warnings, label):
    """The units of the command that v2 makes from `defaults` when a recipe has none."""
    units = [*"vllm serve ", Slot("model")]
    for key, flag in FLAGS.items():
        value = defaults.get(key)
        if value is None or value is False or value == "":
            continue
        units += f" {flag}"
        if value is not True:
            units += [" ", Slot(key)]
    ignored = sorted(set(defaults) - set(FLAGS))
    if ignored:
        warnings.append(f"{label}: defaults: {', '.join(ignored)}: no vLLM flag is known for it, it is left out")
    return units


def needed(recipe, overrides, available, fail):
    """(fewest, wanted) Sparks: what the recipe can start on, and what it gets where `available` Sparks are.

    One GPU a Spark, so the product of a command's parallel sizes is its number of Sparks. v1 cannot say "one
    or two": there a default tensor_parallel of 2 means just that, unless cluster_only, and a larger one means itself.
    """
    alone = _world(recipe, overrides, True, fail)
    world = _world(recipe, overrides, False, fail)
    if recipe.max_nodes == 1:
        if alone > 1:
            fail(f"command: expected one Spark as max_nodes or solo_only says, its flags ask for {alone}")
        return 1, 1
    if recipe.min_nodes > 1 and world < recipe.min_nodes:
        fail(
            f"defaults.tensor_parallel: expected a product of the parallel sizes of at least {recipe.min_nodes}"
            f" (min_nodes or cluster_only), got {world}"
        )
    if recipe.max_nodes is not None and world > recipe.max_nodes:
        fail(f"max_nodes: expected at least {world}, the command's parallel sizes; got {recipe.max_nodes}")
    if recipe.min_nodes == 1 and alone == 1 and world == 2:
        return 1, 2 if available >= 2 else 1
    return world, world


def compose(recipe, mode, count, port, host, overrides, fail) -> Launch:
    """Render the command for `count` Sparks on the house's port; calls fail(message) for what cannot be made true."""
    text, warnings = _text(recipe, mode == "solo", port, host, overrides, fail)
    reader, serving = _read(text, fail)
    simple = _simple(reader)
    edits, appended = [], []
    for command in serving:
        edits += _without_backend(command)
        edits += _house_flag(command, "--port", str(port), {str(port)}, simple, warnings, recipe, fail)
        edits += _house_flag(command, "--host", host, {host, "0.0.0.0", "::"}, simple, warnings, recipe, fail)
    if "--port" not in _flags(serving[-1]):
        appended += ["--port", str(port)]
    names = recipe.defaults.get("served_model_name")
    if recipe.version == "2" and isinstance(names, str) and names and "--served-model-name" not in _flags(serving[-1]):
        names = overrides.get("served_model_name", names)
        appended += ["--served-model-name", *str(names).split()]
    for start, end, new in sorted(edits, reverse=True):
        text = text[:start] + new + text[end:]
    # Words are added at the end, by this house and by the launcher: a comment there would swallow them.
    while (tokens := _read(text, fail)[0].tokens) and tokens[-1].kind in ("comment", "newline"):
        text = text[: tokens[-1].start]
    text = re.sub(r"(\\\n[ \t]*)+\Z", "", text.rstrip()).rstrip("\\").rstrip()
    if appended:
        if not _ends_serving(text, fail):
            fail(
                f"command: expected `{appended[0]} {{{appended[0][2:].replace('-', '_')}}}` in its `vllm serve`;"
                " it does not end with that command, so nothing can be added to it"
            )
        text += " " + " ".join(map(quote, appended))
    reader, serving = _read(text, fail)
    found = _flags(serving[-1])
    if mode == "cluster":
        _check_cluster(text, serving, simple, count, fail)
    argv = [word.text for word in commands(reader.tokens)[0].words] if simple else None
    served = first(found, "--served-model-name") or _model(serving[-1]) or recipe.model
    return Launch(argv, None if simple else text, text, found, _sizes(found, recipe), served, warnings)


def _format_units(text, faults):
    units, i = [], 0
    while i < len(text):
        c = text[i]
        if text[i : i + 2] in ("{{", "}}"):
            units.append(c)
            i += 2
        elif c in "{}":
            name = re.compile(r"\{([A-Za-z_][A-Za-z0-9_]*)\}").match(text, i)
            if not name:
                line = text.count("\n", 0, i) + 1
                faults.append(f"command: line {line}: expected a literal {c} to be doubled, {c}{c}, or {{name}}")
                return units
            units.append(Slot(name[1]))
            i = name.end()
        else:
            units.append(c)
            i += 1
    return units


def _brace_units(text, warnings, label):
    def undouble(match):
        warning = f"{label}: command: doubled braces around JSON are read as single ones, as in version 1"
        if warning not in warnings:
            warnings.append(warning)
        return match[0].replace("{{", "{").replace("}}", "}")

    # Authors who moved a recipe from v1 left its doubled braces in; no JSON begins so, and vLLM would refuse it.
    text = re.sub(r"'\{\{\"[^']*\}\}'", undouble, text)
    units, end = [], 0
    for match in re.finditer(r"(?<!\$)\{([A-Za-z_][A-Za-z0-9_]*)\}", text):
        units += text[end : match.start()]
        units.append(Slot(match[1]))
        end = match.end()
    return units + list(text[end:])


def _values(recipe, solo, port, host, overrides, fail):
    """({name: text}, names put in as they are).

    An author's default of plain characters and spaces that stands bare keeps its spaces: public recipes give two names
    as `served_model_name: "a b"` for `--served-model-name {served_model_name}`, and extra flags in the same way. Such
    text means the same in every shell; any other default, and every override, is one literal.
    """
    used = {u.name for u in recipe.units if isinstance(u, Slot)}
    values = dict(recipe.defaults)
    values.setdefault("model", recipe.model or "")
    values |= {"port": port, "host": host}
    for name, value in overrides.items():
        if name in _HOUSE or not (name in used or name in recipe.defaults):
            fail(
                f"{name}: expected a name from defaults other than port and host ({', '.join(sorted(recipe.defaults))})"
            )
        if not isinstance(value, (str, int, float)):
            fail(f"{name}: expected text or a number, got {type(value).__name__}")
        values[name] = value
    if solo:
        values |= dict.fromkeys(_SIZES, 1)
    for name in used - set(values):
        if name in _SIZES:
            values[name] = 1
    texts = {name: str(value) for name, value in values.items() if not isinstance(value, (dict, list, type(None)))}
    own = set(texts) - set(overrides) - set(_HOUSE) - (set(_SIZES) if solo else set())
    if recipe.version == "2":
        texts |= {name: _nested(name, texts, own, fail, ()) for name in sorted(own & used)}
    for name in used:
        text = texts.get(name, "")
        if "\0" in text or any(0xD800 <= ord(c) < 0xE000 for c in text):
            fail(f"{name}: expected text without NUL bytes or broken characters")
    if overrides:  # one of them may have come in by way of a default that mentions it
        own = {name for name in own if "{" not in str(values[name])}
    return texts, {name for name in own if _FLAGS_TEXT.fullmatch(texts[name])}


def _nested(name, texts, own, fail, seen):
    """A default's text with the placeholders in it filled; what is not the author's own is never read as a template."""
    if name not in own:
        return texts[name]
    if name in seen:
        fail(f"defaults.{name}: expected a value that does not lead back to itself")

    def put(match):
        return _nested(match[1], texts, own, fail, (*seen, name)) if match[1] in texts else match[0]

    text = texts[name]
    return re.sub(r"\{([A-Za-z_][A-Za-z0-9_]*)\}", put, text) if "{" in text else text


def _text(recipe, solo, port, host, overrides, fail):
    values, split = _values(recipe, solo, port, host, overrides, fail)
    reader = Reader(recipe.units)
    twice = None
    for command in commands(reader.tokens):
        if not _serve(command):
            single = Reader(recipe.units[command.start : command.end]) if command.words else None
            twice = twice or (single and reread(single))
    twice = twice or reader.rereads
    within = [c for c in commands(reader.tokens) if _serve(c) or c.name in _TAKES_VALUES]
    assigned = [t for t in reader.tokens if t.assignment]
    for index, slot, _where in reader.places:
        value = values[slot.name]
        if plain(value) or (slot.name in split):
            continue
        if twice:
            fail(
                f"command: {twice} may read {{{slot.name}}} again as shell text; expected a plain value, got {value!r}"
            )
        if not any(c.start <= index < c.end for c in within) and not any(t.start < index < t.end for t in assigned):
            fail(
                f"command: {{{slot.name}}} stands outside `vllm serve`, `export` and assignments; expected a plain"
                f" value, got {value!r}"
            )
    warnings = []
    sizes = [recipe.defaults.get(name) for name in _SIZES]
    if solo and recipe.version == "2" and any(whole(size) not in (None, 1) for size in sizes):
        warnings.append(f"{recipe.label}: tensor_parallel: is 1 on one Spark")
    return fill(recipe.units, reader.places, values, split), warnings


def _read(text, fail):
    try:
        reader = Reader(text)
    except ShellError as error:
        fail(f"command: expected shell text, got one where {error}")
    serving = [c for c in commands(reader.tokens) if _serve(c)]
    if not serving:
        fail("command: expected a `vllm serve …` command")
    return reader, serving


def _serve(command):
    """How many words of a command start vLLM's server: 2 for `vllm serve`, 3 for its Python module, else 0."""
    head = [word.text if word.literal else None for word in command.words[:3]]
    if len(head) > 1 and head[0] and head[0].rsplit("/", 1)[-1] == "vllm" and head[1] == "serve":
        return 2
    python = len(head) == 3 and re.fullmatch(r"(.*/)?python3?(\.\d+)?", head[0] or "")
    return 3 if python and head[1:] == ["-m", "vllm.entrypoints.openai.api_server"] else 0


def _flags(command):
    return flags([word.text if word.literal else None for word in command.words[_serve(command) :]])


def _model(command):
    found = _flags(command)
    start = _serve(command)
    if start == 2 and len(command.words) > 2 and command.words[2].literal:
        text = command.words[2].text
        if not text.startswith("-"):
            return text
    return first(found, "--model")


def _simple(reader):
    """Whether the text is one command of literal words, which needs no shell."""
    all_commands = commands(reader.tokens)
    return (
        len(all_commands) == 1
        and all_commands[0].bare
        and all(token.kind != "op" for token in reader.tokens)
        and all(word.literal for word in all_commands[0].words)
    )


def _sizes(found, recipe):
    sizes = []
    for flag, name in zip(PARALLEL, _SIZES, strict=True):
        given = found.get(flag)
        literal = whole(first(found, flag))
        # A size that only the shell knows is taken from defaults, an absent flag is vLLM's own default, 1.
        sizes.append(literal or (whole(recipe.defaults.get(name)) or 1 if given else 1))
    return tuple(sizes)


def _world(recipe, overrides, solo, fail):
    text, _warnings = _text(recipe, solo, 8888, "0.0.0.0", overrides, fail)
    _reader, serving = _read(text, fail)
    tensor, pipeline, data = _sizes(_flags(serving[-1]), recipe)
    return tensor * pipeline * data


def _without_backend(command):
    edits, words = [], command.words
    for i, word in enumerate(words):
        if word.literal and word.text == _BACKEND and i + 1 < len(words):
            edits.append((word.start, words[i + 1].end, ""))
        elif word.literal and word.text.startswith(_BACKEND + "="):
            edits.append((word.start, word.end, ""))
    return edits


def _house_flag(command, flag, value, right, simple, warnings, recipe, fail):
    """Edits that make a flag's value the house's. A script is the author's text: there it has to be so already."""
    edits, words = [], command.words
    for i, word in enumerate(words):
        name, equals, given = word.text.partition("=")
        if name != flag or (not word.literal and not equals):
            continue
        if not equals and i + 1 == len(words):
            fail(f"command: {flag}: expected a value after it")
        holder = word if equals else words[i + 1]
        given = given if equals else holder.text
        if holder.literal and given in right:
            continue
        if not simple:
            shown = given if holder.literal else "a value that only the shell knows"
            fail(f"command: {flag}: expected {{{flag[2:]}}}, got {shown}; models are served on {value} here")
        edits.append((holder.start, holder.end, f"{flag}={value}" if equals else value))
        warnings.append(f"{recipe.label}: command: {flag} {given} is replaced by {value}")
    return edits


def _ends_serving(text, fail):
    """Whether words added to the end of the text become words of its last `vllm serve` command."""
    reader, serving = _read(text, fail)
    return bool(reader.tokens) and reader.tokens[-1].kind == "word" and serving[-1].end == reader.tokens[-1].end


def _check_cluster(text, serving, simple, count, fail):
    """The launcher edits the command as text: refuse one that its edits would garble or misread."""
    for flag in _LAUNCHER_FLAGS:
        if any(flag in _flags(command) for command in serving):
            fail(f"command: {flag}: expected nothing, the launcher adds it for each Spark")
    if _serve(serving[-1]) != 2 or not _ends_serving(text, fail):
        fail("command: expected to end with its `vllm serve` command, the launcher adds each Spark's words there")
    seen = " ".join(_percent_q(word.text) for word in serving[-1].words) if simple else text
    if re.search(_BACKEND + r"(=|\s+)\S", seen):
        fail(f"command: expected {_BACKEND} as a flag of its own only, the launcher cuts it out wherever it stands")
    if not simple and re.search(r"^[ \t\\]*$", text.strip(), re.MULTILINE) and "<<" in text:
        fail("command: expected no empty line beside a here-document, the launcher drops empty lines")
    reads = _launcher_size(seen)
    if reads not in (None, count):
        fail(f"command: expected {count} Sparks, the launcher would read {reads} from the text of the command")


def _percent_q(word):
    """About what bash's printf %q makes of a word: enough to see what the launcher's text search finds in it."""
    if re.search(r"[\x00-\x1f\x7f]", word):
        return "$'" + word.replace("\n", "\\n").replace("\t", "\\t") + "'"
    return re.sub(r"([^A-Za-z0-9_./:=,+@%-])", r"\\\1", word)


def _launcher_size(text):
    """The number of nodes that the launcher reads from a command's text; None if it finds no size in it."""
    sizes, previous, found = {"t": 1, "p": 1, "d": 1}, "", False
    for word in re.sub(r"(--[a-z-]*)=", r"\1 ", text).split():
        if re.fullmatch(r"-[tpd]p|--(tensor|pipeline|data)-parallel-size", previous) and word.isdigit():
            sizes[previous.lstrip("-")[0]] = int(word)
            found = True
        previous = word
    return sizes["t"] * sizes["p"] * sizes["d"] if found else None
