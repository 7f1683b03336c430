"""Makes rope.json and rope.safetensors beside this file with transformers (5.x): cos and sin of rotary positions for each way of stretching them.

    python tests/golden/rope.py

rope.json: { name: { config: as in config.json, length: positions of the run, rows: positions that are kept } };
rope.safetensors: NAME.cos and NAME.sin [rows, channels that turn / 2] f32.
"""
import json
import os

import torch
from safetensors.torch import save_file
from transformers import AutoConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding
from transformers.models.nemotron.modeling_nemotron import NemotronRotaryEmbedding
from transformers.models.phi3.modeling_phi3 import Phi3RotaryEmbedding

here = os.path.dirname(os.path.abspath(__file__))
classes = {"llama": LlamaRotaryEmbedding, "nemotron": NemotronRotaryEmbedding, "phi3": Phi3RotaryEmbedding}


def config(kind, **more):
    c = dict(model_type=kind, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2,
             head_dim=32, vocab_size=40, max_position_embeddings=1024, rms_norm_eps=1e-6, rope_theta=10000.0)
    if kind == "nemotron":
        del c["rms_norm_eps"]
        c["norm_eps"] = 1e-5
    c.update(more)
    return c


def yarn(**more):
    return config("llama", rope_scaling=dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=256, **more))


def longrope(outer, **more):
    short, long = [1.0 + 0.01 * i for i in range(12)], [2.0 + 0.5 * i for i in range(12)]
    return config("phi3", partial_rotary_factor=0.75, original_max_position_embeddings=outer, pad_token_id=0,
                  rope_scaling=dict(type="longrope", short_factor=short, long_factor=long, **more))


cases = {
    "linear": (config("llama", rope_scaling=dict(type="linear", factor=4.0)), 800),
    "llama3": (config("llama", rope_scaling=dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
                                                 original_max_position_embeddings=128)), 800),
    "yarn": (yarn(), 800),
    "yarn-betas": (yarn(beta_fast=8.0, beta_slow=2.0), 800),
    "yarn-smooth": (yarn(beta_fast=8, truncate=False), 800),
    "yarn-factor": (yarn(attention_factor=1.5), 800),
    "yarn-mscale": (yarn(mscale=1.0, mscale_all_dim=0.5), 800),
    "yarn-outer": (config("llama", original_max_position_embeddings=512, rope_scaling=dict(rope_type="yarn", factor=2.0)), 800),
    "dynamic-within": (config("llama", rope_scaling=dict(type="dynamic", factor=2.0)), 800),
    "dynamic-past": (config("llama", rope_scaling=dict(type="dynamic", factor=2.0)), 1500),
    "longrope-short": (longrope(256), 200),
    "longrope-long": (longrope(256), 800),
    "longrope-factor": (longrope(256, attention_factor=1.25), 800),
    "partial": (config("nemotron"), 800),
    "partial-linear": (config("nemotron", partial_rotary_factor=0.25, rope_scaling=dict(type="linear", factor=2.0)), 800),
}

about, tables = {}, {}
for name, (c, length) in cases.items():
    fields = json.loads(json.dumps(c))
    made = AutoConfig.for_model(fields["model_type"], **{k: v for k, v in fields.items() if k != "model_type"})
    cos, sin = classes[c["model_type"]](made)(torch.zeros(1, 1, dtype=torch.float32), torch.arange(length)[None])
    rows = [0, 1, 37, length - 1]
    half = cos.shape[-1] // 2
    about[name] = dict(config=c, length=length, rows=rows)
    tables[name + ".cos"], tables[name + ".sin"] = cos[0, rows, :half].contiguous(), sin[0, rows, :half].contiguous()

with open(os.path.join(here, "rope.json"), "w") as f:
    json.dump(about, f, indent=1)
    f.write("\n")
save_file(tables, os.path.join(here, "rope.safetensors"))
