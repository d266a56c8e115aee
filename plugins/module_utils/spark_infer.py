"""Suggest how to launch a model from what a scan found of it: each flag with its source, a reason and a confidence.

    suggest(entry, [{"host": "spark1", "total": …, "available": …, "held": …}, …])

Pure. A scan's facts come out of files that anybody can write, so a fact is taken only where it has its right shape, and
no text of theirs becomes part of the command but a repository's name or a folder's path of harmless characters.
"""

from __future__ import annotations

import math
import re

from . import spark_fit, spark_recipe
from .spark_families import CUTLASS, FAMILIES, MARKS, THOUGHTS, Family
from .spark_fit import GIB, WORKING, fact, gb
from .spark_launch_args import MOUNT
from .spark_recipe_fields import REPO, RecipeError
from .spark_recipe_memory import dtype_bytes
from .spark_recipe_shell import plain

IMAGE = "vllm-node"
# Tokens: with less than the first, two Sparks are better than one where they are there; with less than the second it is
# of no use; more than the third is seldom used.
LEAST, SHORTEST, LONGEST = 32_768, 4_096, 262_144
_SIZES = (1, 2, 4, 8)
_GENERATES = re.compile(r"ForCausalLM|ForConditionalGeneration|LMHeadModel|ForImageTextToText|ForVision2Seq|ChatModel")
_OTHERS = re.compile(
    r"For(SequenceClassification|MaskedLM|TokenClassification|QuestionAnswering|CTC|Reward|SpeechSeq2Seq)|^(Bert|T5)"
    r"|Whisper|RewardModel|EmbeddingModel"
)
_LEVELS = ("low", "medium", "high")
# Twice the least that vLLM needs besides, because a suggestion should start at the first try.
_BESIDES = 2 * WORKING
_CAP = 0.9


def suggest(entry: dict, sparks: list[dict], taken=(), port: int = 8888, nodes: int | None = None) -> dict:
    """A suggestion for one model of a scan, on Sparks whose first is the head.

    sparks: [{host, total, available, held}] in bytes. taken: names of recipes that there are. nodes: on how many Sparks
    (1, 2, 4 or 8) where a person chose; without it the fewest that do. Returns {name, title,
    repo, path, mode, nodes, confidence, flags, left_out, env, warnings, reason, recipe, text, fit}: without a
    suggestion `recipe` and `text` are None and `reason` says why. A flag is {flag, value (None: it has none), source
    {file, key} or None, reason, confidence, warning, words}, words being its part of the recipe's `command` (take that
    text out and the flag is gone), its value under the flag's name in `defaults`; left_out has what was decided
    against, in the same shape.
    """
    return _Suggestion(entry if isinstance(entry, dict) else {}, sparks, taken, port, nodes).made()


class _Nothing(Exception):
    """There is no suggestion; the text says why, for a person."""


class _Suggestion:
    def __init__(self, entry, sparks, taken, port, wanted):
        self.entry, self.port, self.wanted = entry, port, wanted
        self.sparks = [spark for spark in sparks if spark.get("total")]
        self.repo = entry.get("repo") if entry.get("kind") != "local" else None
        self.path = entry.get("name") if entry.get("kind") == "local" else None
        self.title = _title(entry)
        self.name = _stem(self.title, taken)
        self.flags, self.left_out, self.warnings, self.defaults = [], [], [], {}
        self.text_of = " ".join(str(fact(entry, key) or "") for key in ("model_type", "architecture")).lower()
        label = (entry.get("repo") or entry.get("name") or "") if isinstance(entry.get("name"), str) else ""
        self.label = str(label).rstrip("/").rsplit("/", 1)[-1].lower()
        self.family = next((f for f in FAMILIES if self._is(f)), None)

    def made(self) -> dict:
        base = {
            "name": self.name, "title": self.title, "repo": self.repo, "path": self.path, "mode": None, "nodes": 0,
            "confidence": "low", "flags": [], "left_out": [], "env": {}, "warnings": self.warnings, "reason": "",
            "recipe": None, "text": None, "fit": [],
        }  # fmt: skip
        try:
            self._may()
            nodes = self._place()
            self._model()
            recipe = self._recipe(nodes)
            loaded = spark_recipe.from_mapping(recipe, self.name)
            fit = self._fit(loaded, nodes)
        except (_Nothing, RecipeError) as why:
            return base | {"reason": str(why), "flags": [], "left_out": self.left_out}
        weakest = min((_LEVELS.index(flag["confidence"]) for flag in self.flags), default=2)
        weakest = min(weakest, 0 if self.family is None else 2)
        return base | {
            "mode": "cluster" if nodes > 1 else "solo", "nodes": nodes, "confidence": _LEVELS[weakest],
            "flags": self.flags, "left_out": self.left_out, "recipe": recipe,
            "text": spark_recipe.write(recipe), "fit": fit,
        }  # fmt: skip

    # --- whether at all ---------------------------------------------------------------------------------------------

    def _may(self):
        """Raise where vLLM would not serve it as a chat model."""
        say, architecture = fact, fact(self.entry, "architecture")
        if self.path is not None:
            if not isinstance(self.path, str) or not MOUNT.fullmatch(self.path):
                raise _Nothing(
                    "Its folder's path has characters that docker and the launcher do not carry (spaces, commas, colons"
                    " or letters beyond ASCII): rename the folder."
                )
        elif not isinstance(self.repo, str) or not REPO.fullmatch(self.repo):
            raise _Nothing("It has no repository's name of the form org/name.")
        if say(self.entry, "adapter"):
            raise _Nothing("It is an adapter and no model of its own: its base model is what can be served.")
        if say(self.entry, "quantization") == "gguf":
            raise _Nothing("Its weights are GGUF, llama.cpp's format; vLLM reads it only as an experiment, and slowly.")
        if say(self.entry, "embedding"):
            raise _Nothing("It makes embeddings and no text; the embedding service is the place for it.")
        if isinstance(architecture, str) and _OTHERS.search(architecture):
            raise _Nothing(f"Its architecture, {_plain(architecture)}, writes no text.")
        if not self.text_of.strip():
            raise _Nothing("Nothing says what it is: its config.json is missing, unreadable or names no architecture.")
        if not (isinstance(architecture, str) and _GENERATES.search(architecture)):
            self.warnings.append(
                f"Whether vLLM can serve its architecture is not known: {_plain(architecture) or 'none is named'}."
            )
        if self.family is None:
            self.warnings.append("Its family is not known here, so its parsers are a guess from its chat template.")
        if self.entry.get("state") not in (None, "complete"):
            self.warnings.append(f"Its weights are not complete here ({_plain(self.entry.get('state'))}).")

    def _is(self, family: Family) -> bool:
        return bool(re.search(family.kind, self.text_of) and (not family.name or re.search(family.name, self.label)))

    # --- where, and with how much -----------------------------------------------------------------------------------

    def _place(self) -> int:
        """Decide the number of Sparks, the share of their memory and the context; returns the number."""
        self.weights = spark_fit.weights_bytes(self.entry) or self._guessed()
        self.own = fact(self.entry, "context")
        eight = fact(self.entry, "quantization") in ("fp8", "nvfp4") and not fact(self.entry, "mla")
        self.kv = "fp8" if eight else None
        sparks = self.sparks or [{"host": "a Spark", "total": 121 * GIB, "available": 115 * GIB, "held": 0}]
        if not self.sparks:
            self.warnings.append("No Spark answered, so its size is measured against a DGX Spark's usual 121 GB.")
        sizes = [n for n in _SIZES if n <= len(sparks) and self.wanted in (None, n)]
        if not sizes:
            raise _Nothing(f"It goes on 1, 2, 4 or 8 Sparks and there are {len(sparks)}; {self.wanted} were asked for.")
        for least in dict.fromkeys((min(self.own or LEAST, LEAST), SHORTEST)):
            for nodes in sizes:
                most = self._most(sparks[:nodes], nodes)
                if most is not None and most >= min(least, self.own or least):
                    self._settle(sparks[:nodes], nodes, most)
                    return nodes
        raise _Nothing(self._too_big(sparks[: max(sizes)]))

    def _guessed(self) -> int:
        """The weights' size from the number of parameters, 0 where that is not known either."""
        count = fact(self.entry, "parameters")
        if not isinstance(count, int) or isinstance(count, bool) or not 0 < count < 10**14:
            self.warnings.append("The size of its weights is not known, so whether it fits is not either.")
            return 0
        width = dtype_bytes(fact(self.entry, "quantization")) or dtype_bytes(fact(self.entry, "dtype")) or 2
        self.warnings.append("The size of its weights is reckoned from its number of parameters.")
        return int(count * width)

    def _cap(self, sparks) -> int:
        """The most that it may claim on each of these Sparks: 90 % of the smallest, and what is free on the fullest."""
        shares = [(s["available"] + s.get("held", 0) - GIB) / s["total"] for s in sparks]
        return max(0.0, min(_CAP, math.floor(min(shares) * 100) / 100))

    def _token(self, nodes) -> float | None:
        return spark_fit.cache({"kv_cache_dtype": self.kv}, self.entry, nodes)["bytes"]

    def _most(self, sparks, nodes) -> int | None:
        """The longest context of one request that goes on these Sparks; None where the weights alone do not."""
        total = min(spark["total"] for spark in sparks)
        part = self.weights // nodes
        room = self._cap(sparks) * total - part - _BESIDES
        if room <= 0 or part + spark_fit.reserve(total) > total:
            return None
        token = self._token(nodes)
        return int(room / token) if token else LEAST

    def _settle(self, sparks, nodes, most):
        """Choose context, requests at once and share for these Sparks."""
        total, token, part = min(spark["total"] for spark in sparks), self._token(nodes), self.weights // nodes
        cap = self._cap(sparks)
        self._solo_or_cluster(nodes, part, total)
        context = min(self.own, most, LONGEST) if self.own else None
        if context and context < self.own:
            context = max(context // 1024 * 1024, min(context, 1024))
        sequences = 16
        if token and context:
            room = cap * total - part - _BESIDES
            sequences = next((n for n in (16, 8, 4) if room / (token * context) >= n / 4), 2)
            wanted = part + _BESIDES + token * context * max(1, min(4, sequences // 4))
        else:
            wanted = max(part * 1.25 + _BESIDES, total * 0.5)
        share = min(cap, max(0.3, math.ceil(wanted / total * 20) / 20))
        self._share(share, total, part)
        self._context(context, most, token)
        self._flag(
            "--max-num-seqs", sequences, None, "medium",
            f"{sequences} requests at once: more would share the same memory for their contexts, and wait.",
        )  # fmt: skip
        self.defaults |= {"gpu_memory_utilization": share, "max_num_seqs": sequences}
        if self.kv:
            self._flag(
                "--kv-cache-dtype", self.kv, self._source("quantization"), "medium",
                "Its weights are of 8 bit or less, so its cache may be of 8 bit too: twice the context in the same"
                " memory, as public recipes for the Spark have it.",
            )  # fmt: skip
        else:
            self._leave("--kv-cache-dtype", None, "The cache stays in the model's own precision.")

    def _solo_or_cluster(self, nodes, part, total):
        if nodes == 1:
            text = f"Its weights take {gb(self.weights)} and go on one Spark of {gb(total)}, with its context."
            self._leave("--tensor-parallel-size", self._size_source(), text)
            return
        self._flag(
            "--tensor-parallel-size", nodes, self._size_source(), "high" if self.weights else "low",
            f"Its weights take {gb(self.weights)}: {gb(part)} on each of {nodes} Sparks of {gb(total)}.",
        )  # fmt: skip
        self.defaults["tensor_parallel"] = nodes

    def _share(self, share, total, part):
        level = "high" if self.weights and self._token(1) else "low"
        self._flag(
            "--gpu-memory-utilization", share, self._size_source(), level,
            f"{gb(share * total)} of a Spark's {gb(total)}, for {gb(part)} of weights, the cache for its context and"
            " some to work in.",
            None if self.weights else "The size of its weights is not known: this is a guess.",
        )  # fmt: skip

    def _context(self, context, most, token):
        if not context:
            self._leave(
                "--max-model-len", None, "Its configuration does not say its context; vLLM takes the model's own."
            )
            return
        unsure = [] if token else ["What a context takes is not known for it, so it may refuse to start with this one."]
        if not token:
            context = min(context, LEAST)
        if context < self.own and token:
            why = "what fits beside its weights" if most <= LONGEST else "more is seldom used, and takes memory"
            unsure.insert(0, f"The model can take {self.own:,} tokens; {context:,} is {why}.")
        known = token and spark_fit.cache({"kv_cache_dtype": self.kv}, self.entry)["verified"]
        self._flag(
            "--max-model-len", context, self._source("context"), "high" if known else "medium" if token else "low",
            f"{context:,} tokens" + (" is the model's own context." if context == self.own else " of context."),
            " ".join(unsure) or None,
        )  # fmt: skip
        self.defaults["max_model_len"] = context

    def _too_big(self, sparks) -> str:
        total = min(spark["total"] for spark in sparks)
        for nodes in (*_SIZES, 16):
            if nodes > len(sparks) and self.weights / nodes + _BESIDES < _CAP * total:
                have = "there is one" if len(self.sparks) == 1 else f"there are {len(self.sparks)}"
                if nodes <= len(self.sparks):
                    return f"Its weights take {gb(self.weights)}: it needs {nodes} Sparks."
                return f"Its weights take {gb(self.weights)}: it needs {nodes} Sparks, and {have}."
        free = min(spark["available"] + spark.get("held", 0) for spark in sparks)
        return (
            f"Its weights take {gb(self.weights)} and do not go on {len(sparks)} of {gb(total)} each, of which"
            f" {gb(free)} are free."
        )

    # --- what kind of model it is -----------------------------------------------------------------------------------

    def _model(self):
        """The flags that follow from the model's kind."""
        self._quantization()
        # Names such as 26B-A4B tell the active parameters of a model with experts.
        if fact(self.entry, "experts") or "moe" in self.text_of or re.search(r"\d+b-a\d+(\.\d+)?b", self.label):
            self._moe()
        self._tools()
        self._thinking()
        self._images()
        if fact(self.entry, "auto_map") is True or isinstance(fact(self.entry, "auto_map"), dict):
            self._flag(
                "--trust-remote-code", None, self._source("auto_map"), "medium",
                "Its configuration names Python files of its own.",
                "They run inside the container with all its rights: look at them first.",
            )  # fmt: skip
        self._loading()
        if self.family and self.family.title == "DeepSeek V4":
            self._flag(
                "--tokenizer-mode", "deepseek_v4", self._source("model_type"), "medium", "It has a format of its own."
            )

    def _quantization(self):
        kind = fact(self.entry, "quantization")
        if not isinstance(kind, str) or not kind:
            self._leave("--quantization", self._source("dtype"), "Its weights are not quantised.")
            return
        text = f"vLLM reads {_plain(kind)} from the model's own configuration; saying it again can only contradict it."
        self._leave("--quantization", self._source("quantization"), text)
        if kind == "bitsandbytes":
            self.warnings.append("bitsandbytes weights are slow in vLLM, and cannot always be split over Sparks.")

    def _moe(self):
        kind, source = fact(self.entry, "quantization"), self._source("experts")
        if kind == "nvfp4":
            self._flag(
                "--moe-backend", "marlin", self._source("quantization"), "high",
                "Experts in NVFP4: the fast CUTLASS kernels for FP4 fail on the GB10, Marlin's run.",
            )  # fmt: skip
        elif not (self.family and self.family.moe):
            self._leave("--moe-backend", source, "vLLM chooses the kernels for its experts.")
        elif kind in ("awq", "gptq", "int4", "autoround"):
            self._leave(
                "--moe-backend", self._source("quantization"), f"vLLM has one set of kernels for {kind} experts."
            )
        elif self.family.moe == "marlin":
            self._flag(
                "--moe-backend", "marlin", source, "high" if kind else "low",
                f"A {self.family.title} with experts: Marlin's kernels are those that are known to run on the GB10.",
                None if kind else "Marlin is for quantised weights; if vLLM refuses it, leave this flag out.",
            )  # fmt: skip
        else:
            self._flag(
                "--moe-backend", CUTLASS, source, "low" if kind else "medium",
                f"A {self.family.title} with experts: FlashInfer's CUTLASS kernels are the fast ones for it.",
                "If its FP8 is block-wise, vLLM has these kernels for other GPUs only and says so at its start; then"
                " leave this flag out." if kind else None,
            )  # fmt: skip

    def _tools(self):
        marks, template = _words(self.entry, "tool_markers"), fact(self.entry, "chat_template")
        tool = self.family.tool if self.family else None
        source = self._source("tool_markers") if marks else self._source("model_type") or self._source("architecture")
        told = next((parser for mark, parser in MARKS if mark in marks), None)
        general = self.family is None or self.family.title in ("Llama", "Hermes", "Phi", "Gemma")
        warning = self.family.note if self.family and tool else None
        if tool == "hermes" and told == "qwen3_coder":
            tool = told  # the template writes Qwen3 Coder's XML, whatever the model is called
        if tool:
            level = "high" if marks else "medium" if template else "low"
            if not marks:
                doubt = "has no tool calls that are known here" if template else "was not found"
                doubt = f"Its chat template {doubt}: this goes by its family alone."
                warning = f"{warning} {doubt}" if warning else doubt
            reason = f"The format of {self.family.title} models."
        elif general and told:
            tool, level, reason = told, "medium", "Its chat template writes tool calls in this format."
            source = self._source("tool_markers")
            warning = "This goes by its chat template alone."
        else:
            family = f"{self.family.title} models" if self.family else "it"
            self._leave("--tool-call-parser", source, f"vLLM has no format of tool calls for {family}.")
            return
        self._flag("--enable-auto-tool-choice", None, source, level, "Lets the model call tools by itself.")
        self._flag("--tool-call-parser", tool, source, level, reason, warning)

    def _thinking(self):
        marks, template = _words(self.entry, "reasoning_markers"), fact(self.entry, "chat_template")
        parser = self.family.reasoning if self.family else None
        thinks = self.family.thinks if self.family else "sometimes"
        source = self._source("reasoning_markers") if marks else self._source("model_type")
        if parser and (marks or thinks == "always"):
            level = "high" if marks else "medium" if template else "low"
            doubt = None if marks else "Its chat template does not show it: this goes by its family alone."
            text = f"Keeps the thoughts of {self.family.title} models apart from their answers."
            self._flag("--reasoning-parser", parser, source, level, text, doubt)
        elif parser and not template and thinks == "sometimes" and re.search(r"think|reason", self.label):
            text = f"Keeps the thoughts of {self.family.title} models apart from their answers."
            self._flag("--reasoning-parser", parser, source, "low", text, "This goes by its name alone.")
        elif not parser and thinks == "sometimes" and marks:
            guess = next((name for mark, name in THOUGHTS if mark in marks), None)
            if guess:
                text = "Its chat template has thoughts in this format."
                self._flag("--reasoning-parser", guess, source, "low", text, "This goes by its chat template alone.")
        else:
            self._leave("--reasoning-parser", source, "Nothing shows that it thinks before it answers.")

    def _images(self):
        if fact(self.entry, "vision") is not True:
            return
        self._flag(
            "--limit-mm-per-prompt", '{"image": 4}', self._source("vision"), "medium",
            "It takes images; four a request keep the memory that is set aside for them small.",
        )  # fmt: skip
        self.defaults["limit_mm_per_prompt"] = '{"image": 4}'

    def _loading(self):
        part = self.weights / max(1, self.defaults.get("tensor_parallel", 1))
        total = min((spark["total"] for spark in self.sparks), default=121 * GIB)
        if part < 4 * GIB:
            return
        if part > 0.7 * total:
            text = "fastsafetensors needs memory of its own while it loads, and these weights leave little."
            self._leave("--load-format", self._size_source(), text)
            return
        self._flag(
            "--load-format", "fastsafetensors", self._size_source(), "medium",
            "Loads several times faster, as public recipes for the Spark have it.",
            "Only the images that are built for the Spark have it; leave it out with another one.",
        )  # fmt: skip

    # --- the pieces ---------------------------------------------------------------------------------------------------

    def _flag(self, flag, value, source, confidence, reason, warning=None):
        row = {"flag": flag, "value": None if value is None else str(value), "source": source}
        row |= {"reason": reason, "confidence": confidence, "warning": warning, "words": flag}
        self.flags.append(row)

    def _leave(self, flag, source, reason):
        row = {"flag": flag, "value": None, "source": source, "reason": reason}
        self.left_out.append(row | {"confidence": "high" if source else "medium", "warning": None, "words": ""})

    def _source(self, name) -> dict | None:
        row = (self.entry.get("facts") or {}).get(name) if isinstance(self.entry.get("facts"), dict) else None
        if not isinstance(row, dict) or row.get("value") is None:
            return None
        return {"file": _plain(row.get("file")), "key": _plain(row.get("key"))}

    def _size_source(self):
        return {"file": "the weight files", "key": "size"} if spark_fit.weights_bytes(self.entry) else None

    def _recipe(self, nodes) -> dict:
        """The eugr v1 mapping. A value of more than plain characters stands in quotes, through a placeholder."""
        model = self.repo or self.path
        kind = fact(self.entry, "quantization")
        metadata = {"vision": fact(self.entry, "vision") is True}
        if _word(kind):
            metadata["quantization"] = kind
        words = ["vllm", "serve", model, "--served-model-name", self.name, "--host", "{host}", "--port", "{port}"]
        for row in self.flags:
            key = row["flag"][2:].replace("-", "_").replace("tensor_parallel_size", "tensor_parallel")
            row["words"] = row["flag"]
            if row["value"] is not None:
                self.defaults.setdefault(key, row["value"])
                row["words"] += f" '{{{key}}}'" if not plain(row["value"]) else f" {{{key}}}"
            words.append(row["words"])
        return {
            "recipe_version": "1",
            "name": self.title,
            "description": self._description(nodes),
            "model": model,
            "container": IMAGE,
            "cluster_only" if nodes > 1 else "solo_only": True,
            "metadata": metadata,
            "defaults": {"host": "0.0.0.0", "port": self.port} | self.defaults,
            "command": " ".join(words),
        }

    def _description(self, nodes) -> str:
        kind = fact(self.entry, "quantization")
        what = [self.family.title if self.family else "A model", str(kind).upper() if _word(kind) else ""]
        where = "on one Spark" if nodes == 1 else f"over {nodes} Sparks"
        return ", ".join(filter(None, [*what, "text and images" if fact(self.entry, "vision") is True else "", where]))

    def _fit(self, recipe, nodes) -> list[dict]:
        """The sum of spark_fit for each of its Sparks."""
        if not self.sparks:
            return []
        places = [{"host": spark["host"], "address": "192.0.2.1"} for spark in self.sparks[:nodes]]
        plan = spark_recipe.render(recipe, places, self.port)
        rows = []
        for spark in self.sparks[:nodes]:
            node = {"host": spark["host"], "total": spark["total"], "available": spark["available"]}
            rows.append(spark_fit.row(plan, node | {"held": spark.get("held", 0)}, self.entry))
        return rows


def _word(kind: object) -> bool:
    """Whether a quantisation is a plain short word."""
    return isinstance(kind, str) and re.fullmatch(r"[a-z0-9][a-z0-9_-]{0,39}", kind) is not None


def _title(entry: dict) -> str:
    name = entry.get("repo") if entry.get("kind") != "local" else entry.get("name")
    tail = str(name or entry.get("name") or "").rstrip("/").rsplit("/", 1)[-1]
    return _plain(tail) or "A model"


def _stem(title: str, taken) -> str:
    """A recipe file's name out of a title, one that is not taken."""
    stem = re.sub(r"[^a-z0-9._-]+", "-", title.lower()).strip("-._")[:100] or "model"
    stem, taken = stem if stem[0].isalnum() else f"m{stem}", {str(name).lower() for name in taken}
    return next(name for name in [stem, *(f"{stem}-{n}" for n in range(2, len(taken) + 3))] if name not in taken)


def _words(entry: dict, name: str) -> list[str]:
    value = fact(entry, name)
    return [word for word in value if isinstance(word, str)] if isinstance(value, list) else []


def _plain(value: object) -> str:
    """A text of somebody else's as it may stand in a sentence: printable, on one line, short."""
    text = "".join(c if c.isprintable() else "?" for c in str(value if value is not None else ""))
    return " ".join(text.split())[:120]
