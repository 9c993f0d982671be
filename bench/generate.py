"""Tokens a second of generation with a key/value cache beside transformers' `generate`.

The same 2.4M-parameter Llama with the same random weights, batch 16, 128 new tokens, temperature 1, float32.
"""

import os
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import torch

from bench.measure import alternate, emit
from core.generation.generate import Sampling, generate
from core.models.hub import from_hugging_face

BATCH, PROMPT, NEW = 16, 16, 128


def run() -> None:
    os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1")
    warnings.simplefilter("ignore")
    theirs, ours = _models()
    prompts = torch.randint(3, 259, (BATCH, PROMPT), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(prompts)

    def hf() -> float:
        began = time.perf_counter()
        out = theirs.generate(
            input_ids=prompts, attention_mask=mask, max_new_tokens=NEW, min_new_tokens=NEW, do_sample=True,
            temperature=1.0, top_p=1.0, top_k=0, pad_token_id=0,
        )  # fmt: skip
        assert out.shape == (BATCH, PROMPT + NEW)
        return BATCH * NEW / (time.perf_counter() - began)

    def hanse() -> float:
        began = time.perf_counter()
        out = generate(ours, prompts.tolist(), max_new_tokens=NEW, sampling=Sampling(temperature=1.0))
        assert all(len(tokens) == NEW for tokens in out.tokens)
        return BATCH * NEW / (time.perf_counter() - began)

    for threads in (1, 2):
        torch.set_num_threads(threads)
        hanse(), hf()
        emit("generated tokens/s, over transformers", threads=threads, batch=BATCH, **alternate(hanse, hf, 5))


def _models() -> tuple[Any, Any]:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=259, hidden_size=192, intermediate_size=768, num_hidden_layers=4, num_attention_heads=6,
        num_key_value_heads=6, max_position_embeddings=256, tie_word_embeddings=True, eos_token_id=None,
    )  # fmt: skip
    theirs = LlamaForCausalLM(config).eval()
    with tempfile.TemporaryDirectory() as folder:
        theirs.save_pretrained(folder)
        ours, spec, weights = from_hugging_face(Path(folder))
    network = ours.build(spec).eval()
    network.load_state_dict(weights)
    return theirs, network
