"""Does a plan fit: weights, cache, reserve, what vLLM refuses to start with, and what was measured before."""

from __future__ import annotations

import json
import os

import pytest
from ansible_collections.spark.control.plugins.module_utils import spark_fit, spark_measured, spark_report
from hypothesis import given
from hypothesis import strategies as st

GIB = 2**30
TOTAL = 122 * GIB


def facts(**values):
    """A scan entry's facts."""
    return {name: {"value": value, "file": "config.json", "key": name} for name, value in values.items()}


def entry(weights=37, **values):
    """A complete model in a scan; a dense one of 40 layers of 8 heads where nothing else is said."""
    shape = {"layers": 40, "kv_heads": 8, "head_dim": 128, "context": 131072} | values
    shape = {name: value for name, value in shape.items() if value is not None}
    return {"name": "o/m", "state": "complete", "weights_bytes": weights * GIB, "facts": facts(**shape)}


def plan(share=0.6, hosts=1, repo="o/m", **memory):
    """A plan as far as the sum reads it."""
    return {
        "repo": repo,
        "digest": "sha256:1",
        "nodes": [{"host": f"spark{n}", "address": f"10.0.0.{n}"} for n in range(1, hosts + 1)],
        "tensor_parallel": hosts,
        "pipeline_parallel": 1,
        "mounts": [],
        "memory": {"gpu_memory_utilization": share} | memory,
    }


def row(what=None, found=None, available=115, held=0, **other):
    """The sum of one Spark."""
    node = {"host": "spark1", "total": TOTAL, "available": available * GIB, "held": held * GIB}
    return spark_fit.row(what or plan(), node, found if found is not None else entry(), **other)


def test_the_cache_is_layers_times_heads_times_size():
    made = row(plan(max_model_len=32768, max_num_seqs=4))
    assert made["kv_one"] == 2 * 40 * 8 * 128 * 2 * 32768
    assert made["kv"] == 4 * made["kv_one"]
    assert made["verified"]
    assert made["ok"]
    assert made["reserve"] == TOTAL // 10
    assert made["notes"] == ["A request of 32,768 tokens takes 5.0 GB; 6 such requests fit at once."]


def test_eight_bit_halves_it_and_two_sparks_share_it():
    assert row(plan(max_model_len=32768, kv_cache_dtype="fp8"))["kv_one"] == 2 * 40 * 8 * 128 * 32768
    two = row(plan(hosts=2, max_model_len=32768))
    assert two["kv_one"] == 40 * 8 * 128 * 2 * 32768
    assert two["weights"] == 37 * GIB // 2
    # With fewer heads than nodes, each node keeps a copy of one.
    four = row(plan(hosts=4, max_model_len=1000), entry(kv_heads=2))
    assert four["kv_one"] == 2 * 40 * 1 * 128 * 2 * 1000


def test_without_a_flag_the_context_is_the_models_own():
    assert row(plan())["context"] == 131072
    assert row(plan(context_auto=True))["kv_one"] is None
    assert row(plan(context_auto=True))["ok"]


def test_one_request_that_does_not_fit_blocks_and_says_what_would():
    made = row(plan(share=0.5, max_model_len=262144))
    assert not made["ok"]
    assert made["message"] == (
        "Its weights take 37 GB and one request of 262,144 tokens 40 GB; with 2.0 GB to work in that is more than the"
        " 61 GB that it may use of the 122 GB on spark1. A context of 143,360 tokens would fit."
    )
    assert row(plan(share=0.5, max_model_len=143360))["ok"]
    assert not row(plan(share=0.5, max_model_len=143360 + 2048))["ok"]


def test_many_requests_that_do_not_fit_at_once_only_wait():
    made = row(plan(share=0.5, max_model_len=131072, max_num_seqs=16))
    assert made["ok"]
    assert made["together"] == 1
    assert "one such request fits at once, of the 16 that it takes on." in made["notes"][0]


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (entry(mla=True), "latent attention"),
        (entry(hybrid=True), "which of its layers"),
        (entry(sliding_window=4096), "keep only a window"),
        (entry(quantization="nvfp4"), "8 bit"),
        (entry(layers=None), "not known"),
        (entry(layers=-3), "not known"),
        (entry(layers=True), "not known"),
        (entry(layers="40"), "not known"),
        ({"weights_bytes": 37 * GIB}, "not known"),
        ({"weights_bytes": 37 * GIB, "facts": "x"}, "not known"),
    ],
)
def test_what_is_not_verified_warns_and_never_blocks(found, words):
    made = row(plan(share=0.4, max_model_len=10**8), found)
    assert made["ok"]
    assert not made["verified"]
    assert words in " ".join(made["notes"])


def test_an_unverified_sum_that_is_too_much_says_so():
    made = row(plan(share=0.4, max_model_len=262144), entry(sliding_window=4096))
    assert made["ok"]
    assert "it may refuse to start" in made["notes"][1]


def test_a_hybrid_model_whose_attention_layers_are_counted_is_verified():
    made = row(plan(max_model_len=32768), entry(hybrid=True, attention_layers=10))
    assert made["verified"]
    assert made["kv_one"] == 2 * 10 * 8 * 128 * 2 * 32768


def test_an_authors_own_figure_counts_and_metadata_alone_does_not():
    own = row(plan(max_model_len=1000, kv_bytes_per_token=4096, kv_verified=True), entry(layers=None))
    assert (own["verified"], own["kv_one"]) == (True, 4_096_000)
    told = row(plan(max_model_len=10**8, kv_bytes_per_token=4096), entry(layers=None))
    assert (told["verified"], told["ok"]) == (False, True)
    assert "metadata" in told["notes"][0]


def test_a_download_counts_with_its_whole_size_and_a_draft_model_too():
    loading = entry(3) | {"state": "downloading", "progress": {"done": 3 * GIB, "total": 90 * GIB, "percent": 3}}
    assert row(plan(), loading)["weights"] == 90 * GIB
    assert row(plan(draft_model="o/d", max_model_len=1000), entry(), draft=entry(2))["weights"] == 39 * GIB
    assert "draft model o/d is not counted" in " ".join(row(plan(draft_model="o/d"))["notes"])


def test_a_claim_that_leaves_too_little_is_told():
    notes = row(plan(share=0.93, max_model_len=1000), available=119)["notes"]
    assert notes[-1] == "It leaves 8.5 GB of spark1 for everything else; 12 GB are advised."


def test_what_was_measured_stands_beside_the_estimate(tmp_path):
    launch = plan(share=0.5)
    spark_measured.keep_measured(str(tmp_path), launch, 61 * GIB, 64 * GIB)
    kept = spark_measured.read_measured(str(tmp_path))
    last = spark_measured.recall(kept, launch)
    assert last["same"]
    assert row(launch, last=last)["notes"][-1] == "Last time it took 64 GB, 3.0 GB more than this estimate."
    assert row(plan(share=64 / 122), last=last)["notes"][-1] == "Last time it took 64 GB, as this estimate says."
    other = spark_measured.recall(kept, launch | {"digest": "sha256:2"})
    text = "Launched in another way it took 64 GB, 3.0 GB more than its estimate."
    assert row(launch, last=other)["notes"][-1] == text
    assert spark_measured.recall(kept, plan(repo="o/other") | {"digest": "x"}) is None


def test_the_measured_file_stays_small_and_private(tmp_path):
    for n in range(100):
        launch = plan(repo=f"o/m{n}") | {"digest": f"sha256:{n}"}
        spark_measured.keep_measured(str(tmp_path), launch, GIB, GIB + n)
    kept = spark_measured.read_measured(str(tmp_path))
    assert len(kept["launches"]) == len(kept["models"]) == spark_measured.MOST
    file = tmp_path / "measured.json"
    assert file.stat().st_mode & 0o777 == 0o600
    assert os.listdir(tmp_path) == ["measured.json"]


HOSTILE = ["", "[]", "nul", "[" * 100_000, '{"launches": 3}', '{"launches": {"a": {"measured": "x"}}}', "\udcff"]
HOSTILE += ['{"launches": {"a": {"estimate": 1e999, "measured": 2, "at": 3}}}', "x" * 200_000]


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_a_measured_file_of_somebody_elses_is_as_good_as_none(tmp_path, text):
    (tmp_path / "measured.json").write_bytes(text.encode(errors="surrogateescape"))
    assert spark_measured.read_measured(str(tmp_path)) == {"launches": {}, "models": {}}
    spark_measured.keep_measured(str(tmp_path), plan(), GIB, GIB)
    assert len(spark_measured.read_measured(str(tmp_path))["launches"]) == 1


def test_a_pipe_in_its_place_holds_nothing_up(tmp_path):
    os.mkfifo(tmp_path / "measured.json")
    assert spark_measured.read_measured(str(tmp_path)) == {"launches": {}, "models": {}}


VALUES = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), st.lists(st.integers()))
NAMES = st.sampled_from(
    ["layers", "kv_heads", "head_dim", "context", "mla", "hybrid", "attention_layers", "sliding_window", "quantization"]
)


@given(
    st.dictionaries(NAMES, st.one_of(VALUES, st.integers(1, 200_000))),
    st.one_of(VALUES, st.integers(0, 2**45)),
    st.fixed_dictionaries(
        {},
        optional={
            "max_model_len": st.integers(1, 10**9),
            "max_num_seqs": st.integers(1, 10**6),
            "kv_cache_dtype": st.sampled_from(["fp8", "auto", "bf16", "nvfp4"]),
        },
    ),
)
def test_no_fact_makes_the_sum_raise_and_its_sides_stay_sane(shape, size, memory):
    found = {"weights_bytes": size, "facts": {name: {"value": value} for name, value in shape.items()}}
    made = row(plan(**memory), found)
    json.dumps(made, allow_nan=False)
    assert made["weights"] >= 0
    assert made["room"] >= 0
    assert made["kv_one"] is None or made["kv_one"] >= 0
    if not made["ok"] and made["weights"] <= made["needs"] <= made["free"]:
        assert made["verified"] or made["weights"] + made["reserve"] > made["total"]


def test_the_probes_are_put_together_by_node_and_the_heads_measure_counts_for_all():
    launch = plan(hosts=2, share=0.5)
    measured = {"launches": {"sha256:1": {"estimate": 61 * GIB, "measured": 70 * GIB, "at": 5}}}
    memory = {"total": TOTAL, "available": 30 * GIB, "model": 80 * GIB}
    seen = {
        host: {"spark": {"memory": memory, "weights": {"o/m": entry()}, "measured": measured if n == 0 else {}}}
        for n, host in enumerate(("spark1", "spark2"))
    }
    rows = spark_report.arithmetic(launch, seen)
    assert [line["host"] for line in rows] == ["spark1", "spark2"]
    assert all(line["notes"][-1].startswith("Last time it took 70 GB, 9.0 GB more") for line in rows)
    assert "once the present model is gone" in rows[0]["message"]
    del seen["spark1"]["spark"]["measured"]
    assert len(spark_report.arithmetic(launch, seen)) == 2
