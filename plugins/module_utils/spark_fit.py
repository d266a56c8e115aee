"""Does a plan fit a Spark: weights, key-value cache and reserve against the memory that will be free. Pure functions.

Sources: sparkrun's estimate (cache per token = 2 · layers · kv_heads · head_dim · bytes) and vLLM's own start-up check,
which gives up when what it may use, less the weights, cannot hold one request of the full context. So one request that
does not fit blocks a launch, while more of them only limit how many run at once. Sizes are bytes, contexts tokens.
"""

from __future__ import annotations

import math

GIB = 2**30
# vLLM's own default for --gpu-memory-utilization.
VLLM_SHARE = 0.9
# The least that vLLM takes of its claim besides weights and cache: activations, CUDA graphs, the GPU's own context.
WORKING = 2 * GIB
# Latent attention (DeepSeek, Kimi, GLM 5) keeps one compressed vector and its rotary part a layer: 512 + 64 values.
LATENT = 576
_KV_BYTES = {"fp8": 1, "fp8_e4m3": 1, "fp8_e5m2": 1, "fp8_inc": 1, "fp8_ds_mla": 1, "int8": 1, "nvfp4": 0.5625}
_KV_BYTES |= {"fp32": 4, "float32": 4}
# Far above any model, far below what would make a sum slow: a config.json may say anything.
_MOST = {"layers": 10_000, "attention_layers": 10_000, "kv_heads": 100_000, "head_dim": 100_000, "context": 10**9}


def gb(size: float) -> str:
    """Bytes in a person's words. GB are binary here, as everywhere else on a Spark: 128 GB of memory, 122 usable."""
    amount = size / GIB
    return f"{amount:.0f} GB" if amount >= 10 or amount <= -10 else f"{amount:.1f} GB"


def reserve(total: int) -> int:
    """What is kept for everything that is not the model: max(10 %, 8 GB)."""
    return max(total // 10, 8 * GIB)


def claim(plan: dict, total: int) -> int:
    """Bytes that vLLM wants free on a node before it starts: its share of the total, or the amount it was given."""
    memory = plan["memory"]
    if memory.get("gpu_memory_gb"):
        return int(memory["gpu_memory_gb"] * GIB)
    return int((memory.get("gpu_memory_utilization") or VLLM_SHARE) * total)


def fact(entry: dict | None, name: str):
    """A fact's value out of a scan's entry, None where it is absent or no such value; numbers within sane bounds."""
    facts = (entry or {}).get("facts")
    row = facts.get(name) if isinstance(facts, dict) else None
    value = row.get("value") if isinstance(row, dict) else None
    if name in _MOST:
        good = isinstance(value, int) and not isinstance(value, bool) and 0 < value <= _MOST[name]
        return value if good else None
    return value


def weights_bytes(entry: dict | None) -> int:
    """The size of a model's weight files: of the whole model where a part of it is still on its way."""
    entry = entry or {}
    size = _size(entry.get("weights_bytes", entry.get("bytes")))
    progress = entry.get("progress")
    if entry.get("state") in ("downloading", "partial", "metadata only") and isinstance(progress, dict):
        size = max(size, _size(progress.get("total")))
    return size


def kv_width(dtype: str | None) -> float:
    """Bytes of one cached number by --kv-cache-dtype; `auto` is the model's own 16 bit."""
    return _KV_BYTES.get(str(dtype or "auto").lower(), 2)


def cache(memory: dict, entry: dict | None, tensor: int = 1, pipeline: int = 1) -> dict:
    """What one token of one request costs a node: {bytes (None: unknown), verified, notes}.

    An author's own figure first, then the model's config.json, then the recipe's metadata. verified is false for
    latent attention, for a hybrid whose attention layers are not counted, for a sliding window (the figure is then the
    most it can be) and where `auto` may mean 8 bit.
    """
    if memory.get("kv_verified") and memory.get("kv_bytes_per_token"):
        return {"bytes": memory["kv_bytes_per_token"] / (tensor * pipeline), "verified": True, "notes": []}
    width = kv_width(memory.get("kv_cache_dtype"))
    layers, heads, dim = (fact(entry, name) for name in ("layers", "kv_heads", "head_dim"))
    notes = []
    if fact(entry, "mla") and layers:
        notes.append("Its cache is an estimate: latent attention, whose size its configuration does not give.")
        return {"bytes": LATENT * width * math.ceil(layers / pipeline), "verified": False, "notes": notes}
    if not (layers and heads and dim):
        said = memory.get("kv_bytes_per_token")
        if said:
            notes.append("Its cache is an estimate from its recipe's metadata.")
        else:
            notes.append("What its context takes is not known: its configuration does not say its layers and heads.")
        return {"bytes": said / (tensor * pipeline) if said else None, "verified": False, "notes": notes}
    counted = fact(entry, "attention_layers")
    if fact(entry, "hybrid"):
        layers = min(layers, counted) if counted else layers
        if not counted:
            notes.append("Its cache is an estimate, and at most this: which of its layers keep one is not known.")
    elif _windowed(entry):
        notes.append("Its cache is an estimate, and at most this: some of its layers keep only a window.")
    if str(memory.get("kv_cache_dtype") or "auto") == "auto" and _may_be_8_bit(entry):
        notes.append("Its cache is an estimate, and at most this: vLLM may choose 8 bit for it.")
    # A node holds whole heads: with fewer heads than nodes each node has a copy.
    held = max(1, math.ceil(heads / tensor))
    return {"bytes": 2 * math.ceil(layers / pipeline) * held * dim * width, "verified": not notes, "notes": notes}


def row(plan: dict, node: dict, entry: dict | None = None, draft: dict | None = None, last: dict | None = None) -> dict:
    """Whether one node takes its part of a plan.

    node: {host, total, available, held}: `held` is what the present model gives back. entry, draft: scan entries of
    the model and of its draft model. last: what `recall` found. Returns {host, ok, total, free, held, needs, weights,
    kv, kv_one, room, context, sequences, together, reserve, verified, estimate, notes, measured, message}: kv is the
    cache for `sequences` requests of the full `context`, kv_one that of one, room what is left for it, together how
    many fit into that at once, None where not known; estimate, the sentences of `notes` that say why it is one.
    """
    memory, total, held = plan["memory"], node["total"], node["held"]
    tensor, pipeline = max(1, plan["tensor_parallel"]), max(1, plan["pipeline_parallel"])
    free, parts = min(total, node["available"] + held), tensor * pipeline
    weights = (weights_bytes(entry) or memory.get("weights_bytes") or 0) // parts
    drafted = weights_bytes(draft) // parts
    kept, needs = reserve(total), claim(plan, total)
    room = max(0, needs - weights - drafted - WORKING)
    token = cache(memory, entry, tensor, pipeline)
    context = None if memory.get("context_auto") else memory.get("max_model_len") or fact(entry, "context")
    sequences = memory.get("max_num_seqs") or 1
    one = int(token["bytes"] * context) if token["bytes"] and context else None
    found = {
        "host": node["host"], "total": total, "free": free, "held": held, "needs": needs, "weights": weights + drafted,
        "kv": one * sequences if one else None, "kv_one": one, "room": room, "context": context,
        "sequences": sequences, "together": room // one if one else None, "reserve": kept,
        "verified": bool(token["verified"] and weights and one), "measured": last,
    }  # fmt: skip
    refused = _refusal(found, token, parts)
    doubt = _doubt(found, token)
    notes = [*doubt, *_notes(found, memory, drafted, refused)]
    then = " once the present model is gone" if held else ""
    fits = f"It needs {gb(needs)}; {gb(free)} of the {gb(total)} on {node['host']} are free{then}."
    return found | {"ok": refused is None, "message": refused or fits, "estimate": doubt, "notes": notes}


def _refusal(found: dict, token: dict, parts: int) -> str | None:
    """Why a node cannot take it, as a sentence or two; None where it can."""
    weights, needs, total, room, one = (found[key] for key in ("weights", "needs", "total", "room", "kv_one"))
    of = f"{gb(total)} on {found['host']}"
    then = " once the present model is gone" if found["held"] else ""
    if weights + found["reserve"] > total:
        part = "Its weights" if parts == 1 else f"Its part of the weights (1 of {parts})"
        kept = gb(found["reserve"])
        return f"{part} take {gb(weights)}, and with {kept} kept for the rest that is more than the {of}."
    if weights > needs:
        return f"Its weights take {gb(weights)} and it may use only {gb(needs)} of the {of}."
    if found["free"] < needs:
        return f"It needs {gb(needs)} and {gb(found['free'])} of the {of} are free{then}."
    if one is not None and one > room and found["verified"]:
        most = int(room / token["bytes"]) // 1024 * 1024
        hint = f" A context of {most:,} tokens would fit." if most else ""
        return (
            f"Its weights take {gb(weights)} and one request of {found['context']:,} tokens {gb(one)}; with"
            f" {gb(WORKING)} to work in that is more than the {gb(needs)} that it may use of the {of}.{hint}"
        )
    return None


def _doubt(found: dict, token: dict) -> list[str]:
    """Why the cache's size is an estimate, as sentences, and what it means where that is too much."""
    one, doubt = found["kv_one"], list(token["notes"])
    if one is not None and one > found["room"] and not found["verified"]:
        doubt.append(
            f"By that estimate one request of {found['context']:,} tokens takes {gb(one)} and {gb(found['room'])} are"
            " left for it: it may refuse to start."
        )
    return doubt


def _notes(found: dict, memory: dict, drafted: int, refused: str | None) -> list[str]:
    """What a person should know of the sum although it stops nothing, as sentences."""
    notes, one, last = [], found["kv_one"], found["measured"]
    if one is not None and refused is None and (one <= found["room"] or found["verified"]):
        together = found["together"]
        several = f"{together:,} such requests fit" if together != 1 else "one such request fits"
        text = f"A request of {found['context']:,} tokens takes {gb(one)}; {several} at once."
        if memory.get("max_num_seqs") and together < found["sequences"]:
            text = text[:-1] + f", of the {found['sequences']:,} that it takes on."
        notes.append(text)
    if memory.get("draft_model") and not drafted:
        notes.append(f"Its draft model {memory['draft_model'][:120]} is not counted.")
    if refused is None and found["total"] - found["needs"] < found["reserve"]:
        rest = gb(found["total"] - found["needs"])
        notes.append(f"It leaves {rest} of {found['host']} for everything else; {gb(found['reserve'])} are advised.")
    if last:
        notes.append(told(last, found["needs"]))
    return notes


def told(last: dict, needs: int) -> str:
    """What was measured last, beside this estimate: «Last time it took 84 GB, 3 GB more than this estimate.»"""
    if not last.get("same", True):
        off, than = last["measured"] - last["estimate"], "its estimate"
        begin = f"Launched in another way it took {gb(last['measured'])}"
    else:
        off, than = last["measured"] - needs, "this estimate"
        begin = f"Last time it took {gb(last['measured'])}"
    if abs(off) < GIB / 2:
        return f"{begin}, as {than} says."
    return f"{begin}, {gb(abs(off))} {'more' if off > 0 else 'less'} than {than}."


def _windowed(entry: dict | None) -> bool:
    """Whether some layers look back less far than the context; Qwen2.5 names a window and does not use it."""
    window, context = fact(entry, "sliding_window"), fact(entry, "context")
    counts = isinstance(window, int) and not isinstance(window, bool) and window > 0
    return counts and not (context and window >= context)


def _may_be_8_bit(entry: dict | None) -> bool:
    detail = fact(entry, "quantization_detail")
    return fact(entry, "quantization") == "nvfp4" or (isinstance(detail, str) and "kv" in detail.lower())


def _size(value: object) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**60 else 0
