"""Using a trained model: generation (prefill, decode, sampling) and scoring (logits, log-probabilities, perplexity).

`generate(model, tokens, max_new_tokens=...)`, `token_log_probabilities(model, tokens)`,
`score_text(model, tokenizer, text)`.
"""

from zoo.inference.constraint import ImageOutput as ImageOutput
from zoo.inference.generation import INFERENCE_RULES as INFERENCE_RULES
from zoo.inference.generation import generate as generate
from zoo.inference.generation import generate_after as generate_after
from zoo.inference.media_prompts import stack_prompts as stack_prompts
from zoo.inference.prefill import Prefilled as Prefilled
from zoo.inference.prefill import continuation_log_probabilities as continuation_log_probabilities
from zoo.inference.prefill import prefill_in_chunks as prefill_in_chunks
from zoo.inference.prompts import left_pad as left_pad
from zoo.inference.sampling import Sampling as Sampling
from zoo.inference.sampling import sample as sample
from zoo.inference.scoring import token_log_probabilities as token_log_probabilities
from zoo.inference.scoring import token_logits as token_logits
from zoo.inference.streaming import TextStream as TextStream
from zoo.inference.text_scoring import TextScore as TextScore
from zoo.inference.text_scoring import score_text as score_text
