"""Selectors from their configuration."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from lightning_rag.backbones.config import EncoderConfig, GeneratorConfig
from lightning_rag.errors import UserError
from lightning_rag.retrieval.listwise import ListwiseSelector
from lightning_rag.retrieval.multi_hop import MultiHopSelector
from lightning_rag.retrieval.plackett_luce import PlackettLuceSelector
from lightning_rag.retrieval.selector import Selector


@dataclass
class SelectorConfig:
    """What chooses and orders K of the N candidates.

    Args:
        kind: "listwise", a language model that reads the query and all candidates and names the
            best (DRO); "multi-hop", an encoder that compares the candidates with the query and
            what was chosen before; or a score for each candidate by a "bi-encoder" or a
            "cross-encoder", from which lists are drawn without replacement (Plackett-Luce).
        model: the listwise selector's own model; None = made like the generator, with weights of
            its own. The other kinds are made like the encoder.
        decoding: listwise: "identifiers" chooses among the remaining candidates at every step, a
            proper distribution over lists (spec A3); "string" writes freely and mends what is no
            list, as the released code does.
        identifiers: listwise: candidates are called by "numbers" or "letters", each one token;
            "auto" takes numbers where the tokeniser has them.
        instruction: listwise: put the request into words, for pretrained language models.
        temperature: of all but listwise: divides the scores. Inner products of unit vectors lie
            within -1 and 1, and need a small one.
        proposal_temperature: temperature of the samples, 1 = the selector itself (spec A4).
        top_p: sample among the most probable candidates that have so much probability together.
    """

    kind: Literal["listwise", "multi-hop", "bi-encoder", "cross-encoder"] = "listwise"
    model: GeneratorConfig | None = None
    decoding: Literal["identifiers", "string"] = "identifiers"
    identifiers: Literal["auto", "numbers", "letters"] = "auto"
    instruction: bool = False
    temperature: float = 1.0
    proposal_temperature: float = 1.0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        for name in ("temperature", "proposal_temperature"):
            value = getattr(self, name)
            if not 0 < value < math.inf:
                raise UserError(f"model.selector.{name} is {value}; legal: above 0")
        if not 0 < self.top_p <= 1:
            raise UserError(f"model.selector.top_p is {self.top_p}; legal: above 0, up to 1")
        if self.kind == "listwise":
            return
        for name, value, neutral in (
            ("decoding", self.decoding, "identifiers"),
            ("identifiers", self.identifiers, "auto"),
            ("instruction", self.instruction, False),
            ("model", self.model, None),
        ):
            if value != neutral:
                raise UserError(
                    f"model.selector.{name} is {value!r}; legal with kind: {self.kind}: {neutral}"
                )

    @property
    def on_policy(self) -> bool:
        """Whether the samples come from the selector's own distribution."""
        return self.proposal_temperature == 1 and self.top_p == 1


def build_selector(
    config: SelectorConfig,
    generator: GeneratorConfig,
    encoder: EncoderConfig,
    corpus: Sequence[str],
    k: int,
    size: int,
) -> Selector:
    """Build a selector.

    Args:
        config: which one.
        generator: what a listwise selector is made of, unless `config` says.
        encoder: what the other selectors are made of.
        corpus: texts for the tokeniser of a tiny model.
        k: K, length of a list.
        size: N, candidates of a query.
    """
    if config.kind == "listwise":
        return ListwiseSelector(
            config.model or generator,
            corpus,
            k,
            size,
            decoding=config.decoding,
            identifiers=config.identifiers,
            instruction=config.instruction,
            proposal_temperature=config.proposal_temperature,
            top_p=config.top_p,
        )
    if config.kind == "multi-hop":
        return MultiHopSelector(
            encoder,
            corpus,
            k,
            temperature=config.temperature,
            proposal_temperature=config.proposal_temperature,
            top_p=config.top_p,
        )
    return PlackettLuceSelector(
        config.kind,
        encoder,
        corpus,
        k,
        temperature=config.temperature,
        proposal_temperature=config.proposal_temperature,
        top_p=config.top_p,
    )
