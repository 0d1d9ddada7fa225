"""The built-in model families, one small file each, which defines a FAMILY (`verst.sync.layout.mapping.Family`).

Llama and Qwen3 are dense, Qwen3-MoE has experts, DeepSeek-V3 adds latent attention, and DeepSeek-V3.2 and GLM-5
(`glm_moe_dsa`) add sparse attention. A family of your own can be any module: a recipe names it by dotted path
(`model.family`).
"""
