"""The losses that compare the pairs of an update, and KTO's, on one batch: TRL's own trainers say the same."""

import math

import pytest
import torch
from trl import DPOTrainer, KTOTrainer

from preference_runs import make_kto, make_pairs, stirred

CASES = [
    {"loss_type": ["sigmoid"]},
    {"loss_type": ["aot"], "label_smoothing": 0.1},
    {"loss_type": ["aot_unpaired"]},
    {"loss_type": ["sigmoid", "bco_pair", "sft"], "loss_weights": [0.8, 0.2, 1.0]},
    {"loss_type": ["aot"], "ld_alpha": 0.3},
    {"loss_type": ["ipo"], "use_weighting": True},
]


@pytest.mark.parametrize("settings", CASES, ids=lambda case: "-".join(map(str, case.values())))
def test_pairs_as_trl_has_them(model_dir, tmp_path, settings):
    trainer = stirred(make_pairs(model_dir, tmp_path, **settings)[0])
    trainer.model.train()
    batch = trainer.data_collator([trainer.train_dataset[index] for index in range(6)])
    ours = trainer.compute_loss(trainer.model, batch)
    trainer.loss_types, trainer.precompute_ref_logps = settings["loss_type"], False
    trainer.loss_weights = settings.get("loss_weights", [1.0])
    theirs = DPOTrainer._compute_loss(trainer, trainer.model, {k: v for k, v in batch.items() if k != "row"}, False)
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-5) and ours.item() != pytest.approx(math.log(2))


@pytest.mark.parametrize("loss", ["kto", "apo_zero_unpaired"])
def test_answers_as_trl_has_them(model_dir, tmp_path, loss, monkeypatch):
    trainer = stirred(make_kto(model_dir, tmp_path, loss_type=loss, desirable_weight=1.5)[0])
    batch = trainer.data_collator([trainer.train_dataset[index] for index in range(6)])
    [_], count = trainer.get_batch_samples(iter([batch]), 1, torch.device("cpu"))
    trainer.model.train()
    ours = trainer.compute_loss(trainer.model, batch, num_items_in_batch=count)
    monkeypatch.setattr(type(trainer), "_compute_kl_logps", KTOTrainer._compute_kl_logps)
    trainer.precompute_ref_logps = False
    theirs = KTOTrainer._compute_loss(trainer, trainer.model, {k: v for k, v in batch.items() if k != "row"}, False)
    assert count == 6 and ours.item() == pytest.approx(theirs.item(), rel=1e-5)
