"""What a vLLM command line says about itself: its flags, and the memory they ask for.

Flag names are vLLM's own (`vllm serve --help`); metadata keys are sparkrun's (its RECIPES.md, "Metadata"), whose GB are
2**30 bytes.
"""

from __future__ import annotations

import json
import re

GIB = 2**30
# Bytes per weight, by sparkrun's dtype names.
DTYPE_BYTES = {
    "float32": 4, "fp32": 4, "float16": 2, "fp16": 2, "bfloat16": 2, "bf16": 2, "int8": 1, "fp8": 1, "fp8_e5m2": 1,
    "fp8_e4m3": 1, "awq8": 1, "int4": 0.5, "awq": 0.5, "awq4": 0.5, "w4a16_awq": 0.5, "gptq": 0.5, "nvfp4": 0.5,
    "mxfp4": 0.5,
}  # fmt: skip
_MULTIPLES = {"": 1, "k": 1000, "m": 10**6, "g": 10**9, "b": 10**9, "t": 10**12}
_ALIASES = {
    "-tp": "--tensor-parallel-size",
    "-pp": "--pipeline-parallel-size",
    "-dp": "--data-parallel-size",
    "-q": "--quantization",
}
PARALLEL = ("--tensor-parallel-size", "--pipeline-parallel-size", "--data-parallel-size")


def flags(words: list[str | None]) -> dict[str, list[str | None]]:
    """{"--port": ["8888"]} for a command's words; a None word is one whose value only the shell knows.

    A flag's list holds every word up to the next flag; the last mention of a flag wins, as in vLLM.
    """
    found: dict[str, list[str | None]] = {}
    name = None
    for word in words:
        if word is not None and re.match(r"-{1,2}[A-Za-z]", word):
            name, equals, value = word.partition("=")
            name = _ALIASES.get(name, name.replace("_", "-"))
            found[name] = [value] if equals else []
        elif name is not None:
            found[name].append(word)
    return found


def first(found: dict, name: str) -> str | None:
    """A flag's value, or None when it is absent or only the shell knows it."""
    return (found.get(name) or [None])[0]


def whole(text, multiples=False) -> int | None:
    """A whole number, with vLLM's human suffixes (32k = 32,000, 32K = 32,768) when asked for; else None."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([kKmMgG]?)", str(text or ""))
    if not match or ((match[2] or "." in match[1]) and not multiples):
        return None
    step = 1024 if match[2].isupper() else 1000
    return int(float(match[1]) * step ** " kmg".index(match[2].lower() or " "))


def number(text) -> float | None:
    try:
        value = float(text)
    except (TypeError, ValueError):
        return None
    return value if 0 <= value < 1e18 else None


def count(value) -> float | None:
    """Parameters from "8B", "671b" or 8000000000; None if it is not such a number."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmbtKMBT]?)\s*", str(value))
    return float(match[1]) * _MULTIPLES[match[2].lower()] if match else None


def dtype_bytes(name) -> float | None:
    return DTYPE_BYTES.get(str(name).lower().strip().replace("-", "_"))


def memory(found: dict, metadata: dict) -> dict:
    """The plan's `memory`: bytes for the whole model, None where neither the flags nor the metadata say.

    kv_bytes_per_token by sparkrun's formula, 2 · layers · kv_heads · head_dim · bytes, is wrong for latent attention
    and for hybrid models; kv_verified is true only for an author's own kv_vram_per_token.
    """
    weights = number(metadata.get("model_vram"))
    weights = weights * GIB if weights else None
    params, width = count(metadata.get("model_params")), dtype_bytes(metadata.get("model_dtype"))
    if weights is None and params and width:
        weights = params * width

    measured = number(metadata.get("kv_vram_per_token"))
    per_token = measured * GIB if measured else None
    shape = [number(metadata.get(key)) for key in ("num_layers", "num_kv_heads", "head_dim")]
    if per_token is None and all(shape):
        kv = first(found, "--kv-cache-dtype") or metadata.get("kv_dtype") or "auto"
        kv_width = dtype_bytes(kv) or dtype_bytes(metadata.get("kv_dtype")) or 2
        per_token = 2 * shape[0] * shape[1] * shape[2] * kv_width

    length = first(found, "--max-model-len")
    return {
        "gpu_memory_utilization": number(first(found, "--gpu-memory-utilization")),
        "gpu_memory_gb": number(first(found, "--gpu-memory-utilization-gb")),
        "max_model_len": whole(length, multiples=True),
        "context_auto": length in ("auto", "-1"),
        "max_num_seqs": whole(first(found, "--max-num-seqs")),
        "weights_bytes": round(weights) if weights else None,
        "kv_bytes_per_token": round(per_token) if per_token else None,
        "kv_verified": bool(measured),
        "kv_cache_dtype": first(found, "--kv-cache-dtype"),
        "draft_model": draft(found),
    }


def draft(found: dict) -> str | None:
    """The repository or folder of a draft model that --speculative-config names; most methods need none."""
    try:
        said = json.loads(first(found, "--speculative-config") or "")
    except (ValueError, RecursionError):
        return None
    model = said.get("model") if isinstance(said, dict) else None
    return model if isinstance(model, str) and model else None


_QUANTIZATIONS = ("nvfp4", "mxfp4", "fp8", "awq", "gptq", "autoround", "int4", "int8", "bf16")


def quantization(found: dict, metadata: dict, repo: str | None) -> str | None:
    """How the weights are quantized: the metadata's word, the flag's, or the one in the repository's name."""
    said = metadata.get("quantization") or first(found, "--quantization") or metadata.get("model_dtype")
    if isinstance(said, str):
        return said
    name = (repo or "").lower().replace("auto-round", "autoround")
    return next((q for q in _QUANTIZATIONS if q in name), None)


def vision(found: dict, metadata: dict, repo: str | None) -> bool:
    """Whether the model takes images: the metadata's word, else vLLM's multimodal flags, else `VL` in its name."""
    if isinstance(metadata.get("vision"), bool):
        return metadata["vision"]
    if "--language-model-only" in found:
        return False
    if {"--limit-mm-per-prompt", "--mm-encoder-tp-mode", "--mm-processor-kwargs"} & set(found):
        return True
    return bool(re.search(r"(^|[-_/.])(VL|Vision)([-_.0-9]|$)", repo or "", re.IGNORECASE))
