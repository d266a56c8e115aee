"""Whatever lies on a disk, a scan ends, raises nothing, and says what can be sent."""

from __future__ import annotations

import json
import os
import shutil
import tempfile

from ansible_collections.spark.control.plugins.module_utils import spark_cache
from hypothesis import given
from hypothesis import strategies as st

STATES = {"complete", "downloading", "partial", "metadata only", "dangling"}
COMMIT = "a" * 40
NAMES = st.sampled_from(
    [
        b"models--org--a",
        b"models--org--b",
        b"models--x",
        b"datasets--org--d",
        b".spark-trash-models--org--a.0011aabb",
        b"blobs",
        b"snapshots",
        b"refs",
        b"trees",
        b"main",
        COMMIT.encode(),
        COMMIT.encode() + b".json",
        b"aa",
        b"f" * 64,
        b"config.json",
        b"tokenizer_config.json",
        b"hf_quant_config.json",
        b"chat_template.jinja",
        b"adapter_config.json",
        b"preprocessor_config.json",
        b"model.safetensors",
        b"model.safetensors.index.json",
        b"a-Q4_K_M.gguf",
        b"model-00001-of-00003.safetensors",
        b"model-00002-of-00003.safetensors",
        b"model-99999-of-99999.bin",
        b"x.0a1b2c3d.incomplete",
        b".locks",
        b"\xff\xfe",
        "größe".encode(),
        b"a\nb",
        b"..data",
    ]
)
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=20)),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=8,
)
KEYS = st.sampled_from(
    [
        "architectures",
        "model_type",
        "text_config",
        "quantization_config",
        "quant_method",
        "quant_algo",
        "bits",
        "config_groups",
        "quantization",
        "layer_types",
        "num_hidden_layers",
        "num_attention_heads",
        "hidden_size",
        "num_experts",
        "vision_config",
        "kv_lora_rank",
        "chat_template",
        "weight_map",
        "metadata",
        "total_size",
        "files",
        "hybrid_override_pattern",
        "_name_or_path",
        "dtype",
        "full_attention_interval",
        "mamba_d_state",
    ]
)
JSON = st.dictionaries(KEYS, VALUES | st.dictionaries(KEYS, VALUES, max_size=4), max_size=6)
CONTENT = st.one_of(
    st.binary(max_size=40),
    JSON.map(lambda value: json.dumps(value).encode()),
    st.just(b"\x10\0\0\0\0\0\0\0" + b'{"a":{"dtype":1}'),
    st.just(COMMIT.encode()),
)
PATH = st.lists(NAMES, min_size=1, max_size=5).map(b"/".join)
THING = st.one_of(
    st.tuples(st.just("file"), PATH, CONTENT),
    st.tuples(
        st.just("link"), PATH, st.one_of(PATH, st.sampled_from([b".", b"..", b"/", b"../../blobs/aa", b"/dev/null"]))
    ),
    st.tuples(st.just("fifo"), PATH, st.just(b"")),
    st.tuples(st.just("folder"), PATH, st.just(b"")),
)


def lay(root: bytes, things: list) -> None:
    """Make what can be made of it; what is in the way stays."""
    for kind, path, content in things:
        place = os.path.join(root, path)
        try:
            os.makedirs(os.path.dirname(place), exist_ok=True)
            if kind == "file":
                with open(os.open(place, os.O_WRONLY | os.O_CREAT | os.O_EXCL), "wb") as file:
                    file.write(content)
            elif kind == "link":
                os.symlink(content, place)
            elif kind == "fifo":
                os.mkfifo(place)
            else:
                os.makedirs(place, exist_ok=True)
        except OSError:
            continue


@given(st.lists(THING, max_size=30))
def test_a_scan_never_raises(things):
    home = tempfile.mkdtemp()
    try:
        # The ways in which a cache is laid out come often enough this way.
        hub = os.path.join(os.fsencode(home), b"hub")
        lay(hub, things)
        within = os.path.join(hub, b"models--org--a")
        lay(within, things)
        lay(os.path.join(within, b"snapshots", COMMIT.encode()), things)
        local = os.path.join(home, "hub", "models--org--a", "snapshots", COMMIT)
        scan = spark_cache.scan(home, [home, local, os.path.join(home, "hub")])
        json.dumps(scan, ensure_ascii=False, allow_nan=False).encode("utf-8")
        for entry in scan["models"]:
            assert entry["state"] in STATES
            assert entry["frees"] >= 0
            assert entry["bytes"] >= 0
            assert (entry["state"] == "complete") == (not entry["reason"])
            assert len(entry["missing"]) <= 20
            assert entry.keys() == spark_cache.look(home, "org/none").keys()
        assert spark_cache.look(home, "org/a")["state"] in STATES | {"missing"}
        spark_cache.look(home, local, local=[local])
    finally:
        shutil.rmtree(home)
