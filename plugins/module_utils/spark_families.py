"""Which parsers vLLM has for which family of models: data, and the few words that tell a family.

Names are those of vLLM's own registries (vllm/tool_parsers/__init__.py and vllm/reasoning/__init__.py, 2026) and its
pages «Tool Calling» and «Reasoning Outputs»; where it has several for one family, the one that public recipes for the
Spark use.
"""

from __future__ import annotations

from typing import NamedTuple


class Family(NamedTuple):
    """One family. kind and name are patterns (searched, lower case) for `model_type architecture` and for the name.

    tool, reasoning: parsers or None.
    thinks: always, sometimes (then the template tells) or never. moe: backend for its experts. note: a warning.
    """

    title: str
    kind: str
    name: str = ""
    tool: str | None = None
    reasoning: str | None = None
    thinks: str = "sometimes"
    moe: str | None = None
    note: str | None = None


_TEMPLATE = "Tool calls need vLLM's own chat template for it ({}), given with --chat-template."
CUTLASS = "flashinfer_cutlass"

# The first that fits wins: the special before the general.
FAMILIES = (
    Family("MiniMax M3", r"minimax_?m3", "", "minimax_m3", "minimax_m3", "always"),
    Family("MiniMax M2", r"minimax_?m2", "", "minimax_m2", "minimax_m2", "always"),
    Family("gpt-oss", r"gpt_?oss", "", "openai", "openai_gptoss", "always"),
    Family("Kimi K3", r"kimi_?k3", "", "kimi_k3", "kimi_k3", "always"),
    Family("Kimi K2", r"kimi_?k2", "", "kimi_k2", "kimi_k2"),
    Family("Kimi K2", r"deepseek_?v3", r"kimi.?k2", "kimi_k2", "kimi_k2"),
    Family("QwQ", r"qwen2", r"qwq", "hermes", "deepseek_r1", "always"),
    Family("DeepSeek R1 distilled", r"qwen|llama", r"r1.distill", None, "deepseek_r1", "always"),
    Family("Qwen3.5 and 3.6", r"qwen3_?[5-9]", "", "qwen3_coder", "qwen3", "always", CUTLASS),
    Family("Qwen3 Coder", r"qwen3", r"coder", "qwen3_coder", None, "never", CUTLASS),
    Family("Qwen3", r"qwen3", "", "hermes", "qwen3", "sometimes", CUTLASS),
    Family("Qwen2.5", r"qwen2", "", "hermes", None, "never"),
    Family("Gemma 4", r"gemma_?4", "", "gemma4", "gemma4", "always", "marlin"),
    Family(
        "FunctionGemma", r"gemma", r"functiongemma", "functiongemma", None, "never", "marlin",
        _TEMPLATE.format("tool_chat_template_functiongemma.jinja"),
    ),
    Family("Gemma", r"gemma", "", None, None, "never", "marlin"),
    Family("DeepSeek V4", r"deepseek_?v4", "", "deepseek_v4", "deepseek_v4", "always"),
    Family("DeepSeek V3.2", r"deepseek_?v32|deepseek_?v3_2", "", "deepseek_v32", "deepseek_v3", "always"),
    Family("DeepSeek V3.2", r"deepseek", r"v3[._]2", "deepseek_v32", "deepseek_v3", "always"),
    Family(
        "DeepSeek V3.1", r"deepseek", r"v3[._]1", "deepseek_v31", "deepseek_v3", "always",
        note=_TEMPLATE.format("tool_chat_template_deepseekv31.jinja"),
    ),
    Family(
        "DeepSeek R1", r"deepseek", r"r1", "deepseek_v3", "deepseek_r1", "always",
        note=_TEMPLATE.format("tool_chat_template_deepseekr1.jinja"),
    ),
    Family(
        "DeepSeek V3", r"deepseek_?v3", "", "deepseek_v3", None, "never",
        note=_TEMPLATE.format("tool_chat_template_deepseekv3.jinja"),
    ),
    Family("GLM 5", r"glm_?moe_?dsa|glm_?5", "", "glm47", "glm45", "always"),
    Family("GLM 4.7", r"glm_?4_?moe_?lite", "", "glm47", "glm45", "always"),
    Family("GLM 4.7", r"glm_?4_?moe", r"4[._]7", "glm47", "glm45", "always"),
    Family("GLM 4.5 and 4.6", r"glm_?4v?_?moe", "", "glm45", "glm45", "always"),
    Family("Nemotron 3", r"nemotron_?h", r"nemotron.?3", "qwen3_coder", "nemotron_v3", "always"),
    Family(
        "Llama 4", r"llama_?4", "", "llama4_pythonic", None, "never",
        note=_TEMPLATE.format("tool_chat_template_llama4_pythonic.jinja"),
    ),
    Family("Hermes", r"llama|mistral|qwen", r"hermes", "hermes", None, "sometimes"),
    Family(
        "Llama 3", r"llama", r"llama.?3", "llama3_json", None, "never",
        note=_TEMPLATE.format("tool_chat_template_llama3.1_json.jinja") + " Without it they are less reliable.",
    ),
    Family("Magistral", r"mistral|pixtral", r"magistral", "mistral", "mistral", "always"),
    Family("Mistral", r"mistral|mixtral|pixtral|voxtral", "", "mistral", "mistral"),
    Family("Granite 4", r"granite_?moe_?hybrid|granite_?4", "", "granite4", None, "never"),
    Family("Granite 4", r"granite", r"granite.?4", "granite4", None, "never"),
    Family("Granite", r"granite", "", "granite", "granite"),
    Family("Phi-4 mini", r"phi", r"phi.?4.?mini", "phi4_mini_json", None, "never"),
    Family("Phi", r"phi", "", None, None, "never"),
    Family("Seed OSS", r"seed_?oss", "", "seed_oss", "seed_oss", "always"),
    Family("Step 3.5", r"step_?3[p_]?[5-9]", "", "step3p5", "step3p5", "always"),
    Family("Hunyuan A13B", r"hunyuan|hun_?yuan", r"a13b", "hunyuan_a13b", "hunyuan_a13b"),
    Family("ERNIE 4.5", r"ernie_?4_?5", "", "ernie45", "ernie45"),
    Family("Olmo 3", r"olmo_?3", "", "olmo3", "olmo3"),
    Family("InternLM 2.5", r"internlm_?2", "", "internlm", None, "never"),
    Family("Jamba", r"jamba", "", "jamba", None, "never"),
    Family("LFM 2", r"lfm_?2", "", "lfm2", None, "never"),
    Family("Llama", r"llama", ""),
)  # fmt: skip

# What a chat template says itself, for a fine-tune of a family that has no format of its own; the special first.
MARKS = (
    ("<minimax:tool_call>", "minimax_m2"),
    ("[TOOL_CALLS]", "mistral"),
    ("<|tool_calls_section_begin|>", "kimi_k2"),
    ("<\uff5ctool\u2581calls\u2581begin\uff5c>", "deepseek_v3"),
    ("<function=", "qwen3_coder"),
    ("<arg_key>", "glm45"),
    ("<|python_tag|>", "llama3_json"),
    ("<tool_call>", "hermes"),
)
THOUGHTS = (("[THINK]", "mistral"), ("<|channel|>", "openai_gptoss"), ("<think>", "deepseek_r1"))
