"""Configuration of the backbones, as it stands in YAML files."""

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Literal

from lightning_rag.errors import UserError

# What a text is to an encoder that reads queries and passages with prefixes of their own.
Role = Literal["query", "passage", "none"]


@dataclass
class TinyConfig:
    """A model from scratch with a tokeniser trained on the data, for demonstrations and tests.

    The defaults were measured on the synthetic relations, three demonstrations each fused in the
    decoder, AdamW at 2e-3, batches of 32, one seed: 96 % of the validation labels right after 300
    steps. With four heads it was 69 %: comparing unseen words piece by piece takes many heads.

    Args:
        vocab_size: upper limit of the tokeniser's vocabulary, and rows of the embedding table. A
            small one makes unseen words out of pieces that training has met in other words.
        hidden_size: width of the model; a multiple of `heads`.
        layers: layers of the encoder, and of the decoder.
        heads: attention heads.
        dropout: dropout probability everywhere in the model.
    """

    vocab_size: int = 500
    hidden_size: int = 64
    layers: int = 2
    heads: int = 8
    dropout: float = 0.0


@dataclass
class EncoderConfig:
    """What a bi-encoder or a cross-encoder is made of.

    Args:
        source: "tiny", a local folder, a Hub id, or "package:<module>/<folder inside it>".
        pooling: "mean" over the tokens, or the "first" token.
        max_length: longest input in tokens, special tokens included.
        normalize: divide embeddings by their Euclidean norm.
        tiny: the model when `source` is "tiny".
        trust_remote_code: run code that comes with a Hub repository.
        dtype: precision of the weights; "auto" takes the checkpoint's.
        query_prefix: text in front of each query that a bi-encoder embeds as one, such as e5's
            "query: ". "": that of `source`, where it is a sentence-transformers folder with one.
        passage_prefix: the same for passages.
        extra_tokens: words that the tokeniser keeps whole, such as tags around spans. The rows of
            new ones in the embedding table are drawn as the model draws its own.
        freeze_positions: keep the learned position embeddings as they are.
        encode_chunk: with gradient, texts or pairs go through the model this many at a time, and
            activations are computed again in the backward pass: memory is that of one chunk,
            however large the batch; about a third more time (gradient caching, Gao et al. 2021,
            arXiv 2101.06983). None: the whole batch with its activations.
        token_types: a cross-encoder tells query and passage apart by token types too, where its
            model knows them.
    """

    source: str = "tiny"
    pooling: Literal["mean", "first"] = "mean"
    max_length: int = 128
    normalize: bool = True
    tiny: TinyConfig = field(default_factory=TinyConfig)
    trust_remote_code: bool = False
    dtype: Literal["float32", "bfloat16", "float16", "auto"] = "float32"
    query_prefix: str = ""
    passage_prefix: str = ""
    extra_tokens: list[str] = field(default_factory=list)
    freeze_positions: bool = False
    encode_chunk: int | None = None
    token_types: bool = True

    def __post_init__(self) -> None:
        if self.encode_chunk is not None and self.encode_chunk < 1:
            raise UserError(f"encode_chunk is {self.encode_chunk}; legal: 1 or more, or null")
        words = self.extra_tokens
        if len(set(words)) < len(words) or not all(word.strip() for word in words):
            raise UserError(f"extra_tokens is {words}; legal: words that are not empty, each once")

    def identity(self) -> dict[str, object]:
        """Return the settings that the model's outputs depend on: for the keys of caches.

        Settings that old caches do not know are left out where they have no effect.
        """
        settings = dataclasses.asdict(self)
        del settings["encode_chunk"], settings["freeze_positions"]
        later = dataclasses.asdict(EncoderConfig())
        for name in ("query_prefix", "passage_prefix", "extra_tokens", "token_types"):
            if settings[name] == later[name]:
                del settings[name]
        return settings


@dataclass
class LoraConfig:
    """Low-rank adapters on a generator (Hu et al. 2021, arXiv 2106.09685), by the peft library.

    A linear layer W gets W + alpha / rank * B A, with A (rank, inputs) and B (outputs, rank). B
    starts at 0, so the generator starts as the model without adapters. A and B learn, W does not;
    biases do not either. A warm start (`decoder_layers`) gets adapters on its encoder alone, and
    its fresh decoder learns whole. A tiny model keeps its random weights, with adapters on them.

    Args:
        rank: width of the adapters; 0 = none, the whole generator learns.
        alpha: the adapters' factor is alpha / rank.
        dropout: dropout probability of the adapters' inputs while they learn.
        targets: names of the linear layers that get adapters, or the last parts of their names,
            such as [q, v]; at least one must be in the model. None: all but the output layer.
    """

    rank: int = 0
    alpha: float = 16.0
    dropout: float = 0.1
    targets: list[str] | None = None

    def __post_init__(self) -> None:
        if self.rank < 0:
            raise UserError(f"generator.lora.rank is {self.rank}; legal: 0 or more")
        if not 0 < self.alpha < math.inf:
            raise UserError(f"generator.lora.alpha is {self.alpha}; legal: above 0")
        if not 0 <= self.dropout < 1:
            raise UserError(f"generator.lora.dropout is {self.dropout}; legal: 0 to less than 1")
        if self.targets is not None and not all(self.targets or [""]):
            raise UserError(
                f"generator.lora.targets is {self.targets}; legal: names of linear layers, "
                "or null for all"
            )


@dataclass
class QuantizationConfig:
    """A generator's frozen weights in 4 bits (QLoRA, Dettmers et al. 2023, arXiv 2305.14314).

    The bitsandbytes library quantises the linear layers under the adapters, but not the output
    layer, as they are read from the source: 4 bits a weight, and a scale for every 64 of them. All
    other weights are kept in float32, as the paper does for normalisation layers. Quantised weights
    cannot learn, so `lora.rank` must be above 0; a tiny model cannot be quantised.

    Args:
        type: "none"; "nf4", whose 16 values are quantiles of a normal distribution; or "fp4".
        double: quantise the scales too: 0.13 bits a weight for them in place of 0.5.
        compute: precision of the products with quantised weights; "auto" is bfloat16 where a CUDA
            device has it, else float32.
    """

    type: Literal["none", "nf4", "fp4"] = "none"
    double: bool = True
    compute: Literal["auto", "float32", "bfloat16", "float16"] = "auto"


@dataclass
class GeneratorConfig:
    """What a generator is made of, and how it reads prompts.

    Args:
        source: "tiny", a local folder, a Hub id, or "package:<module>/<folder inside it>".
        architecture: "encoder-decoder" or "decoder-only".
        decoder_layers: warm start: `source` is an encoder checkpoint, and a fresh decoder of this
            many layers is put on top of it. None: `source` is a whole generator.
        max_source_length: longest input in tokens, special tokens included, soft prompt not. With
            fused passages the limit of each query-passage pair.
        max_target_length: longest answer in tokens, end-of-sequence token included.
        passages: "concatenate" puts all passages into one input; "fuse" encodes each passage with
            the query and joins all encoder states for the decoder (encoder-decoder only;
            Izacard & Grave 2021, Fusion-in-Decoder).
        max_passage_length: longest passage in tokens, None for no limit of its own.
        soft_prompt_position: "insert" soft-prompt vectors after the first token, or "prepend" them.
        num_beams: beams of `generate`; 1 is greedy.
        chat_template: decoder-only: wrap the prompt in the tokeniser's chat template.
        answer_cue: decoder-only: text between the query and the answer.
        lora: low-rank adapters instead of training the whole model.
        quantization: 4-bit weights under the adapters.
        gradient_checkpointing: compute activations again in the backward pass instead of keeping
            them: less memory, about a third more time.
        tiny: the model when `source` is "tiny".
        trust_remote_code: run code that comes with a Hub repository.
        dtype: precision of the weights; "auto" takes the checkpoint's.
    """

    source: str = "tiny"
    architecture: Literal["encoder-decoder", "decoder-only"] = "encoder-decoder"
    decoder_layers: int | None = None
    max_source_length: int = 256
    max_target_length: int = 32
    passages: Literal["concatenate", "fuse"] = "concatenate"
    max_passage_length: int | None = None
    soft_prompt_position: Literal["insert", "prepend"] = "insert"
    num_beams: int = 1
    chat_template: bool = False
    answer_cue: str = "Answer:"
    lora: LoraConfig = field(default_factory=LoraConfig)
    quantization: QuantizationConfig = field(default_factory=QuantizationConfig)
    gradient_checkpointing: bool = False
    tiny: TinyConfig = field(default_factory=TinyConfig)
    trust_remote_code: bool = False
    dtype: Literal["float32", "bfloat16", "float16", "auto"] = "float32"
