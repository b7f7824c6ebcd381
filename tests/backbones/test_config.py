import dataclasses

import torch

from lightning_rag.backbones.config import EncoderConfig, GeneratorConfig, TinyConfig


def test_configurations_are_read_back_without_pickle(tmp_path):
    given = {
        "encoder": EncoderConfig(source="some/model", max_length=7),
        "generator": GeneratorConfig(decoder_layers=2, tiny=TinyConfig(layers=3)),
    }
    torch.save(given, tmp_path / "config.pt")
    read = torch.load(tmp_path / "config.pt", weights_only=True)
    assert read == given
    assert dataclasses.asdict(read["generator"])["tiny"]["layers"] == 3
