"""What a model's own files say of it, and where."""

from __future__ import annotations

import json
import struct

import pytest
from ansible_collections.spark.control.plugins.module_utils import spark_facts


def facts(folder, files: dict) -> dict:
    """The facts of a folder with these files (JSON unless text or bytes)."""
    for name, content in files.items():
        text = content if isinstance(content, bytes | str) else json.dumps(content)
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return spark_facts.facts(str(folder), dict.fromkeys(files))


def values(told: dict) -> dict:
    return {fact: row["value"] for fact, row in told.items()}


def test_a_multimodal_mixture_of_experts(tmp_path):
    config = {
        "architectures": ["Qwen3_5MoeForConditionalGeneration"],
        "model_type": "qwen3_5_moe",
        "quantization_config": {"quant_method": "fp8", "fmt": "e4m3"},
        "vision_config": {"depth": 27},
        "text_config": {
            "num_hidden_layers": 40,
            "num_key_value_heads": 2,
            "head_dim": 256,
            "hidden_size": 2048,
            "vocab_size": 151936,
            "max_position_embeddings": 262144,
            "num_experts": 256,
            "num_experts_per_tok": 8,
            "dtype": "bfloat16",
            "layer_types": ["linear_attention", "linear_attention", "linear_attention", "full_attention"] * 10,
        },
    }
    told = facts(tmp_path, {"config.json": config, "chat_template.jinja": "<tool_call>{{ x }}</tool_call><think>"})
    assert values(told) == {
        "architecture": "Qwen3_5MoeForConditionalGeneration",
        "model_type": "qwen3_5_moe",
        "experts": 256,
        "experts_active": 8,
        "context": 262144,
        "layers": 40,
        "kv_heads": 2,
        "head_dim": 256,
        "hidden_size": 2048,
        "vocab_size": 151936,
        "dtype": "bfloat16",
        "vision": True,
        "hybrid": True,
        "attention_layers": 10,
        "quantization": "fp8",
        "quantization_detail": "e4m3",
        "chat_template": True,
        "tool_markers": ["<tool_call>"],
        "reasoning_markers": ["<think>"],
    }
    assert told["layers"] == {"value": 40, "file": "config.json", "key": "text_config.num_hidden_layers"}
    assert told["tool_markers"]["file"] == "chat_template.jinja"


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"config.json": {"quantization_config": {"quant_method": "awq", "bits": 4}}}, "awq"),
        ({"config.json": {"quantization_config": {"quant_method": "gptq", "bits": 4}}}, "gptq"),
        ({"config.json": {"quantization_config": {"quant_method": "mxfp4"}}}, "mxfp4"),
        ({"config.json": {"quantization_config": {"quant_method": "modelopt", "quant_algo": "NVFP4"}}}, "nvfp4"),
        ({"config.json": {"quantization_config": {"quant_method": "modelopt_fp4"}}}, "nvfp4"),
        ({"config.json": {}, "hf_quant_config.json": {"quantization": {"quant_algo": "FP8"}}}, "fp8"),
        (
            {"config.json": {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}},
            "bitsandbytes",
        ),
        ({"config.json": {}, "tuned-Q4_K_M.gguf": b"GGUF"}, "gguf"),
        ({"config.json": {}}, None),
        ({"config.json": {"quantization_config": {"quant_method": ["x"]}}}, None),
    ],
)
def test_quantisations(tmp_path, files, expected):
    assert values(facts(tmp_path, files)).get("quantization") == expected


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        ({"num_bits": 4, "type": "float", "group_size": 16}, "nvfp4"),
        ({"num_bits": 4, "type": "float", "group_size": 32}, "mxfp4"),
        ({"num_bits": 8, "type": "float"}, "fp8"),
        ({"num_bits": 4, "type": "int"}, "int4"),
        ({"num_bits": 8, "type": "int"}, "int8"),
        ({"num_bits": 3, "type": "int"}, "compressed-tensors"),
    ],
)
def test_compressed_tensors_say_what_they_packed(tmp_path, weights, expected):
    config = {"quant_method": "compressed-tensors", "config_groups": {"group_0": {"weights": weights}}}
    assert values(facts(tmp_path, {"config.json": {"quantization_config": config}}))["quantization"] == expected


def test_attention_that_is_not_counted_by_heads(tmp_path):
    told = values(facts(tmp_path, {"config.json": {"kv_lora_rank": 512, "num_hidden_layers": 61}}))
    assert told == {"mla": True, "layers": 61}
    told = values(facts(tmp_path, {"config.json": {"hybrid_override_pattern": "MEM*MEM*", "num_hidden_layers": 8}}))
    assert (told["hybrid"], told["attention_layers"]) == (True, 2)


def test_heads_and_their_size_follow_from_the_older_names(tmp_path):
    told = facts(tmp_path, {"config.json": {"n_head": 12, "n_embd": 768, "n_layer": 6, "n_positions": 1024}})
    assert values(told) == {"kv_heads": 12, "hidden_size": 768, "head_dim": 64, "layers": 6, "context": 1024}
    assert told["kv_heads"]["key"] == "n_head"


def test_parameters_where_a_few_bytes_tell(tmp_path):
    index = {"metadata": {"total_parameters": 7_000_000_000, "total_size": 1}, "weight_map": {}}
    told = facts(tmp_path, {"config.json": {}, "model.safetensors.index.json": index})
    assert told["parameters"]["value"] == 7_000_000_000
    index = {"metadata": {"total_size": 14_000_000_000}, "weight_map": {}}
    told = facts(tmp_path, {"config.json": {"torch_dtype": "bfloat16"}, "model.safetensors.index.json": index})
    assert told["parameters"] == {
        "value": 7_000_000_000,
        "file": "model.safetensors.index.json",
        "key": "metadata.total_size",
    }
    header = json.dumps({"__metadata__": {}, "a": {"dtype": "BF16", "shape": [3, 5], "data_offsets": [0, 30]}}).encode()
    tensors = struct.pack("<Q", len(header)) + header + bytes(30)
    other = tmp_path / "other"
    other.mkdir()
    assert values(facts(other, {"config.json": {}, "model.safetensors": tensors}))["parameters"] == 15


def test_templates_in_the_tokenizer_and_several_of_them(tmp_path):
    named = [{"name": "default", "template": "plain"}, {"name": "tool_use", "template": "[TOOL_CALLS]"}]
    told = facts(tmp_path, {"tokenizer_config.json": {"chat_template": named}})
    assert told["tool_markers"] == {"value": ["[TOOL_CALLS]"], "file": "tokenizer_config.json", "key": "chat_template"}


def test_embeddings_and_adapters_are_told_apart(tmp_path):
    told = values(facts(tmp_path, {"adapter_config.json": {}, "adapter_model.safetensors": b"x"}))
    assert told["adapter"] is True
    told = values(facts(tmp_path, {"config.json": {}, "1_Pooling/config.json": {}}))
    assert told["embedding"] is True
