"""The losses of pairs and single answers: by hand, and against TRL's own trainers on the same batch."""

import math

import pytest
import torch
from trl import DPOTrainer, KTOTrainer

from hf_recipes.run.arguments import PAIR_LOSSES, UNPAIRED_LOSSES, DPOArguments, KTOArguments
from hf_recipes.trainer.preference_losses import Pairs, Rated, pair_losses, rated_losses
from preference_runs import make_kto, make_pairs

SETTINGS = {"exo_pair": {"label_smoothing": 0.1}, "robust": {"label_smoothing": 0.2}, "aot": {"label_smoothing": 0.1}}
CASES = [{"loss_type": [name], **SETTINGS.get(name, {})} for name in PAIR_LOSSES]
CASES += [{"f_divergence_type": name} for name in ("forward_kl", "js_divergence", "alpha_divergence")]
CASES += [
    {"f_divergence_type": "alpha_divergence", "f_alpha_divergence_coef": 1.0, "loss_type": ["hinge"]},
    {"loss_type": ["sigmoid", "bco_pair", "sft"], "loss_weights": [0.8, 0.2, 1.0]},
    {"ld_alpha": 0.3},
    {"use_weighting": True, "loss_type": ["ipo"]},
]


def logistic(value: float) -> float:
    return math.log1p(math.exp(-value))


def test_sigmoid_by_hand(tmp_path):
    pairs = Pairs(
        *torch.tensor([[-4.0, -9.0], [-6.0, -2.0], [-5.0, -7.0], [-5.0, -3.0], [3.0, 4.0], [2.0, 6.0], [1, 1]])
    )
    args = DPOArguments(output_dir=str(tmp_path), report_to="none", beta=0.5)
    # Ratios 1 and -2 of the chosen sides, -1 and 1 of the rejected ones.
    assert pair_losses(pairs, args).tolist() == pytest.approx([logistic(0.5 * 2), logistic(0.5 * -3)])
    rewards = {name: values.tolist() for name, values in pairs.rewards(0.5).items()}
    assert rewards["rewards/chosen"] == [0.5, -1.0] and rewards["rewards/rejected"] == [-0.5, 0.5]
    assert rewards["rewards/margins"] == [1.0, -1.5] and rewards["rewards/accuracies"] == [1.0, 0.0]
    half = DPOArguments(output_dir=str(tmp_path), report_to="none", beta=0.5, loss_type=["ipo"])
    each_token = [1 / 3 + 1 / 2, -2 / 4 - 1 / 6]
    assert pair_losses(pairs, half).tolist() == pytest.approx([(value - 1) ** 2 for value in each_token])


def test_kto_by_hand(tmp_path):
    answers = Rated(*torch.tensor([[-3.0, -3.0], [-5.0, -4.0], [1.0, 0.0], [0.5, 1.5]]))
    args = KTOArguments(output_dir=str(tmp_path), report_to="none", beta=0.5, undesirable_weight=3.0)
    kl = answers.divergence()
    assert kl.item() == 1.0
    expected = [1 - 1 / (1 + math.exp(-0.5 * (2 - 1))), 3 / (1 + math.exp(-0.5 * (1 - 1)))]
    assert rated_losses(answers, kl, args).tolist() == pytest.approx(expected)
    below = Rated(*torch.tensor([[0.0], [0.0], [1.0], [-2.0]]))
    assert below.divergence().item() == 0
    free = KTOArguments(output_dir=str(tmp_path), report_to="none", beta=0.5, loss_type="apo_zero_unpaired")
    expected = [1 - 1 / (1 + math.exp(-1)), 1 / (1 + math.exp(-0.5))]
    assert rated_losses(answers, kl, free).tolist() == pytest.approx(expected)


@pytest.mark.parametrize("settings", CASES, ids=lambda case: "-".join(map(str, case.values())))
def test_pairs_as_trl_has_them(model_dir, tmp_path, settings):
    trainer, _, _ = make_pairs(model_dir, tmp_path, **settings)
    stir(trainer.model)
    batch = trainer.data_collator([trainer.train_dataset[index] for index in range(6)])
    theirs = DPOTrainer._compute_loss(trainer, trainer.model, {k: v for k, v in batch.items() if k != "row"}, False)
    trainer._metrics["train"].clear()
    trainer.model.train()
    ours = trainer.compute_loss(trainer.model, batch)
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-5) and ours.item() != pytest.approx(math.log(2))


@pytest.mark.parametrize("loss", UNPAIRED_LOSSES)
def test_answers_as_trl_has_them(model_dir, tmp_path, loss):
    trainer, _, _ = make_kto(model_dir, tmp_path, loss_type=loss, desirable_weight=1.5)
    stir(trainer.model)
    batch = trainer.data_collator([trainer.train_dataset[index] for index in range(6)])
    theirs = KTOTrainer._compute_loss(trainer, trainer.model, {k: v for k, v in batch.items() if k != "row"}, False)
    trainer._metrics["train"].clear()
    [_], count = trainer.get_batch_samples(iter([batch]), 1, torch.device("cpu"))
    trainer.model.train()
    ours = trainer.compute_loss(trainer.model, batch, num_items_in_batch=count)
    assert count == 6 and ours.item() == pytest.approx(theirs.item(), rel=1e-5)


def stir(model) -> None:
    """So that policy and reference differ."""
    torch.manual_seed(1)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.3)
