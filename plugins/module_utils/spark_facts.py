"""What a model's own files say of it: architecture, quantisation, context and so on, each with where it says so.

The files were written by strangers. A value of an unexpected type is not there, texts are cut, and no file of more than
some megabytes is taken.
"""

from __future__ import annotations

import json
import os
import re
import struct

from .spark_disk import plain, read, read_json

MOST = 4 << 20
MOST_NUMBER = 10**15
# What a chat template shows of the tool-call and reasoning formats that the field's parsers know.
TOOL_MARKERS = (
    "<tool_call>",
    "<tool_calls>",
    "<|tool_call|>",
    "<|tool_calls_section_begin|>",
    "<\uff5ctool\u2581calls\u2581begin\uff5c>",
    "<\uff5cDSML\uff5c",
    "<minimax:tool_call>",
    "[TOOL_CALLS]",
    "<|python_tag|>",
    "<|tool_call_start|>",
    "<|tool_call>",
    "<function=",
    "<function_call>",
    "<start_function_call>",
    "<TOOLCALL>",
    "<|action_start|>",
    "<|channel|>commentary",
    "<arg_key>",
    "<seed:tool_call>",
)
REASONING_MARKERS = (
    "<think>",
    "</think>",
    "<|channel|>",
    "<|channel>",
    "[THINK]",
    "<seed:think>",
    "<|think|>",
    "◁think▷",
)

_INNER = ("text_config", "llm_config", "language_config")
_NUMBERS = {
    "experts": ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"),
    "experts_active": ("num_experts_per_tok", "num_experts_per_token", "top_k_experts", "moe_topk", "moe_k"),
    "context": ("max_position_embeddings", "max_seq_len", "seq_length", "n_positions", "model_max_length"),
    "layers": ("num_hidden_layers", "n_layer", "n_layers", "num_layers"),
    "kv_heads": ("num_key_value_heads", "num_kv_heads", "n_head_kv", "multi_query_group_num"),
    "head_dim": ("head_dim", "attention_head_dim"),
    "hidden_size": ("hidden_size", "n_embd", "d_model"),
    "vocab_size": ("vocab_size",),
    "sliding_window": ("sliding_window",),
}
_HEADS = ("num_attention_heads", "n_head", "n_heads")
_METHODS = {
    "compressed-tensors": "compressed-tensors",
    "compressed_tensors": "compressed-tensors",
    "modelopt": None,
    "modelopt_fp4": "nvfp4",
    "fbgemm_fp8": "fp8",
    "gptq_marlin": "gptq",
    "awq_marlin": "awq",
    "bitsandbytes": "bitsandbytes",
}
_STATEFUL = re.compile(r"linear|mamba|ssm|recurrent|conv|rwkv|delta", re.I)
_STATE_KEYS = ("mamba_d_state", "ssm_state_size", "linear_num_value_heads", "mamba_num_heads", "linear_attn_config")
_BYTES = {"BF16": 2, "F16": 2, "F32": 4, "bfloat16": 2, "float16": 2, "float32": 4}
_PARAMETERS = re.compile(rb'"total_parameters"\s*:\s*(\d{1,15})\b')
_TOTAL_SIZE = re.compile(rb'"total_size"\s*:\s*(\d{1,15})\b')


def facts(place: str, files: dict) -> dict:
    """{fact: {value, file, key}} of the model in the folder `place`; `files` has the relative names that it has.

    `key` is a dotted path in the file, "" where the whole file says it. What nothing tells is absent.
    """
    told = Told(place, files)
    if "config.json" in files:
        _config(told)
    _quantization(told)
    _template(told)
    _parameters(told)
    if "adapter_config.json" in files and "config.json" not in files:
        told.say("adapter", True, "adapter_config.json", "")
    for name in ("modules.json", "config_sentence_transformers.json", "1_Pooling/config.json"):
        if name in files:
            told.say("embedding", True, name, "")
    for name in ("preprocessor_config.json", "processor_config.json"):
        if name in files and name == "preprocessor_config.json" and isinstance(told.json(name), dict):
            if "image_processor_type" in told.json(name):
                told.say("vision", True, name, "image_processor_type")
            elif "sampling_rate" in told.json(name):
                told.say("audio", True, name, "sampling_rate")
    if "quantization" not in told.facts:
        for name in files:
            if name.endswith(".gguf"):
                told.say("quantization", "gguf", name, "")
                detail = re.search(
                    r"(?<![A-Za-z0-9])((?:IQ|Q|BF|F|MXFP)\d[A-Za-z0-9_]*)", name.rpartition("/")[2], re.I
                )
                if detail:
                    told.say("quantization_detail", detail[1].upper(), name, "")
                break
    return told.facts


def origin(place: str) -> str | None:
    """Where a model says that it comes from."""
    config = read_json(os.path.join(place, "config.json"), MOST)
    name = config.get("_name_or_path") if isinstance(config, dict) else None
    return name if isinstance(name, str) else None


class Told:
    """The facts so far, and the files they are read from, each once."""

    def __init__(self, place: str, files: dict):
        self.place, self.files = place, files
        self.facts: dict[str, dict] = {}
        self._read: dict[str, object] = {}

    def json(self, name: str) -> object:
        """One of the model's JSON files; None where it has none that can be taken."""
        if name not in self._read:
            self._read[name] = read_json(os.path.join(self.place, name), MOST) if name in self.files else None
        return self._read[name]

    def say(self, fact: str, value: object, file: str, key: str) -> None:
        """Note a fact; the first to tell is right."""
        if value is not None and fact not in self.facts:
            self.facts[fact] = {"value": value, "file": plain(file), "key": key}


def _config(told: Told) -> None:
    """What config.json says, of the whole model or of its language part."""
    config = told.json("config.json")
    if not isinstance(config, dict):
        return
    parts = [("", config)]
    parts += [(f"{key}.", config[key]) for key in _INNER if isinstance(config.get(key), dict)]
    names = config.get("architectures")
    if isinstance(names, list) and names:
        told.say("architecture", word(names[0]), "config.json", "architectures.0")
    told.say("model_type", word(config.get("model_type")), "config.json", "model_type")

    # The language part's own numbers are the ones that count, where there is one.
    def first(keys: tuple[str, ...]) -> tuple[int | None, str]:
        for prefix, part in reversed(parts):
            for key in keys:
                if (value := number(part.get(key))) is not None:
                    return value, prefix + key
        return None, ""

    for fact, keys in _NUMBERS.items():
        value, key = first(keys)
        if value or (fact == "sliding_window" and value is not None):
            told.say(fact, value, "config.json", key)
    heads, key = first(_HEADS)
    if heads:
        told.say("kv_heads", heads, "config.json", key)
        hidden = told.facts.get("hidden_size", {}).get("value")
        if hidden and hidden % heads == 0:
            told.say("head_dim", hidden // heads, "config.json", told.facts["hidden_size"]["key"])
    for prefix, part in parts:
        for key in ("dtype", "torch_dtype"):
            told.say("dtype", (word(part.get(key)) or "").removeprefix("torch.") or None, "config.json", prefix + key)
        if number(part.get("kv_lora_rank")):
            told.say("mla", True, "config.json", f"{prefix}kv_lora_rank")
    for key in ("vision_config", "vision_encoder", "vision_tower", "mm_vision_tower", "img_processor"):
        if config.get(key):
            told.say("vision", True, "config.json", key)
    for key in ("audio_config", "audio_encoder", "audio_processor", "speech_config"):
        if config.get(key):
            told.say("audio", True, "config.json", key)
    for prefix, part in reversed(parts):
        _hybrid(told, prefix, part)


def _hybrid(told: Told, prefix: str, part: dict) -> None:
    """Whether some layers keep a state of fixed size instead of a cache, and how many do not."""
    layers = number(part.get("num_hidden_layers"))
    for key in ("layer_types", "layers_block_type"):
        kinds = part.get(key)
        if isinstance(kinds, list) and 0 < len(kinds) <= 10_000 and all(isinstance(kind, str) for kind in kinds):
            stateful = [bool(_STATEFUL.search(kind)) for kind in kinds]
            if any(stateful):
                told.say("hybrid", True, "config.json", prefix + key)
                attention = sum("attention" in kind and not odd for kind, odd in zip(kinds, stateful, strict=True))
                told.say("attention_layers", attention, "config.json", prefix + key)
            return
    pattern = part.get("hybrid_override_pattern")
    if isinstance(pattern, str) and "M" in pattern:
        told.say("hybrid", True, "config.json", f"{prefix}hybrid_override_pattern")
        told.say("attention_layers", pattern.count("*"), "config.json", f"{prefix}hybrid_override_pattern")
        return
    for key in _STATE_KEYS:
        if part.get(key):
            told.say("hybrid", True, "config.json", prefix + key)
            every = number(part.get("full_attention_interval"))
            if every and layers:
                told.say("attention_layers", layers // every, "config.json", f"{prefix}full_attention_interval")
            return


def _quantization(told: Told) -> None:
    """How the weights are packed, by the model's own config or by NVIDIA's tool's."""
    config = told.json("config.json")
    for prefix in ("", *(f"{key}." for key in _INNER)):
        part = config if isinstance(config, dict) else {}
        part = part.get(prefix[:-1]) if prefix else part
        for key in ("quantization_config", "compression_config"):
            said = part.get(key) if isinstance(part, dict) else None
            if isinstance(said, dict) and _method(told, said, "config.json", f"{prefix}{key}"):
                return
    said = told.json("hf_quant_config.json")
    said = said.get("quantization") if isinstance(said, dict) else None
    if isinstance(said, dict):
        _method(told, said, "hf_quant_config.json", "quantization")


def _method(told: Told, said: dict, file: str, path: str) -> bool:
    """Note one declaration of a quantisation; whether it was one."""
    method = (word(said.get("quant_method")) or "").lower()
    algorithm = (word(said.get("quant_algo")) or "").lower()
    named = algorithm or _METHODS.get(method, method)
    named = {"fp8_pb_wo": "fp8", "w4a16_awq": "awq", "w4a8_awq": "awq", "nvfp4_awq": "nvfp4"}.get(named, named)
    key = "quant_algo" if algorithm else "quant_method"
    bits = number(said.get("bits"))
    detail = [f"{method or 'modelopt'} {algorithm}"] if algorithm else []
    if named == "compressed-tensors":
        named, found = _groups(said)
        detail += found
    if not named or named == "modelopt":
        return False
    if named in ("quark", "torchao", "auto-round", "inc", "autoround") and bits in (4, 8):
        detail.append(named)
        named = f"int{bits}"
    if named == "bitsandbytes":
        detail.append("4 bit" if said.get("load_in_4bit") is True else "8 bit")
    detail += [f"{bits} bit"] if bits else []
    detail += [text for text in (word(said.get("fmt")), word(said.get("format"))) if text]
    told.say("quantization", named, file, f"{path}.{key}")
    if detail:
        told.say("quantization_detail", ", ".join(dict.fromkeys(detail)), file, path)
    return True


def _groups(said: dict) -> tuple[str, list[str]]:
    """What compressed-tensors packed: its first group of weights."""
    groups = said.get("config_groups")
    for group in list(groups.values())[:8] if isinstance(groups, dict) else []:
        weights = group.get("weights") if isinstance(group, dict) else None
        if isinstance(weights, dict):
            kind, bits = word(weights.get("type")), number(weights.get("num_bits"))
            form = word(group.get("format")) or word(said.get("format")) or ""
            if kind == "float" and bits == 4:
                small = "mxfp4" if "mxfp4" in form or number(weights.get("group_size")) == 32 else "nvfp4"
                return small, ["compressed-tensors"]
            if kind == "float" and bits == 8:
                return "fp8", ["compressed-tensors"]
            if kind == "int" and bits in (4, 8):
                return f"int{bits}", ["compressed-tensors"]
    return "compressed-tensors", []


def _template(told: Told) -> None:
    """Which tool-call and reasoning formats the chat template writes."""
    for file, key in (
        ("chat_template.jinja", ""),
        ("chat_template.json", "chat_template"),
        ("tokenizer_config.json", "chat_template"),
    ):
        if file in told.files and (text := _text(told, file, key)):
            break
    else:
        return
    told.say("chat_template", True, file, key)
    tools = [marker for marker in TOOL_MARKERS if marker in text]
    thoughts = [marker for marker in REASONING_MARKERS if marker in text]
    told.say("tool_markers", tools or None, file, key)
    told.say("reasoning_markers", thoughts or None, file, key)


def _text(told: Told, file: str, key: str) -> str:
    """One chat template, or several of them one after the other; empty where there is none."""
    if not key:
        return (read(os.path.join(told.place, file), MOST) or b"").decode("utf-8", "replace")
    said = told.json(file)
    text = said.get(key) if isinstance(said, dict) else None
    if isinstance(text, list):
        named = [row.get("template") for row in text if isinstance(row, dict)]
        text = "\n".join(template for template in named if isinstance(template, str))
    return text if isinstance(text, str) else ""


def _parameters(told: Told) -> None:
    """How many parameters, where a few kilobytes tell: the index's metadata, or the only file's header."""
    index = "model.safetensors.index.json"
    packed = "quantization" in told.facts
    if index in told.files:
        head = read(os.path.join(told.place, index), 65536, start=True) or b""
        if found := _PARAMETERS.search(head):
            told.say("parameters", int(found[1]), index, "metadata.total_parameters")
        found, size = _TOTAL_SIZE.search(head), _BYTES.get(told.facts.get("dtype", {}).get("value", ""))
        if found and size and not packed:
            told.say("parameters", int(found[1]) // size, index, "metadata.total_size")
    elif "model.safetensors" in told.files and not packed:
        told.say("parameters", _tensors(os.path.join(told.place, "model.safetensors")), "model.safetensors", "")


def _tensors(path: str) -> int | None:
    """All tensors' elements by a safetensors header (8 bytes of length, then JSON); None where they are packed."""
    head = read(path, 8, start=True) or b""
    size = struct.unpack("<Q", head)[0] if len(head) == 8 else 0
    if not 2 <= size <= 1 << 20:
        return None
    try:
        rows = json.loads((read(path, 8 + size, start=True) or b"")[8:])
        count = 0
        for name, row in rows.items():
            if name == "__metadata__":
                continue
            if row["dtype"] not in _BYTES:
                return None
            elements = 1
            for length in row["shape"]:
                elements *= length
            count += elements
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None
    return count if isinstance(count, int) and 0 < count < MOST_NUMBER else None


def word(value: object) -> str | None:
    """A short text, or None."""
    return plain(value[:200]) if isinstance(value, str) and value else None


def number(value: object) -> int | None:
    """A whole number that a model can have, or None."""
    if isinstance(value, float) and value.is_integer() and abs(value) < MOST_NUMBER:
        value = int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < MOST_NUMBER else None
