"""A tiny local/global model that has learnt nothing, with a tokenizer of its own, to show that the runner works."""

from flax import nnx

from experiments.long_context_recall.haystacks import Haystack, haystack
from experiments.long_context_recall.words import CITIES, made_up_text
from zoo.data import Tokenizer, train_tokenizer
from zoo.models import Gemma2Config, build


def quick_model(context: int = 512) -> tuple[nnx.Module, Tokenizer, Haystack]:
    """(model with random weights, tokenizer, haystack made here)."""
    text = "\n\n".join(made_up_text(1, 40_000))
    tokenizer = train_tokenizer([text, " ".join(CITIES), "0123456789"], 640)
    config = Gemma2Config(
        vocab_size=tokenizer.vocab_size,
        embed_dim=64,
        num_layers=2,
        num_heads=2,
        num_kv_heads=1,
        head_dim=32,
        hidden_dim=128,
        query_pre_attn_scalar=32,
        sliding_window=64,
        max_position_embeddings=context,
        bos_token_id=tokenizer.bos_id,
        eos_token_ids=(tokenizer.eos_id,),
        pad_token_id=tokenizer.pad_id,
    )
    return build(config, rngs=nnx.Rngs(0)), tokenizer, haystack(tokenizer, characters=40_000)
