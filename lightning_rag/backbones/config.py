"""Configuration of the backbones, as it stands in YAML files."""

from dataclasses import dataclass, field
from typing import Literal


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
    """What a bi-encoder is made of.

    Args:
        source: "tiny", a local folder, a Hub id, or "package:<module>/<folder inside it>".
        pooling: "mean" over the tokens, or the "first" token.
        max_length: longest input in tokens, special tokens included.
        normalize: divide embeddings by their Euclidean norm.
        tiny: the model when `source` is "tiny".
        trust_remote_code: run code that comes with a Hub repository.
        dtype: precision of the weights; "auto" takes the checkpoint's.
    """

    source: str = "tiny"
    pooling: Literal["mean", "first"] = "mean"
    max_length: int = 128
    normalize: bool = True
    tiny: TinyConfig = field(default_factory=TinyConfig)
    trust_remote_code: bool = False
    dtype: Literal["float32", "bfloat16", "float16", "auto"] = "float32"


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
    tiny: TinyConfig = field(default_factory=TinyConfig)
    trust_remote_code: bool = False
    dtype: Literal["float32", "bfloat16", "float16", "auto"] = "float32"
