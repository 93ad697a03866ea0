"""The tokens of texts that repeat the frame of a chat template are those of each text by itself."""

import random
from copy import deepcopy

import pytest
from tokenizers import AddedToken

from hf_recipes.data.chat.token_offsets import Aligner

PARTS = [
    "你好",
    " the model",
    "\n",
    "  ",
    "<a>",
    "<a>b",
    "<",
    "a>",
    "[N]",
    "\uff46",
    "<r>",
    " <l> ",
    "<s>",
    "<s>x",
    "🙂",
    "12",
]
ADDED = {
    "plain": [AddedToken("<a>", special=True)],
    "overlapping": [
        AddedToken("<a>", special=True),
        AddedToken("<a>b", special=True),
        AddedToken("b<", special=True),
    ],
    "normalized": [AddedToken("[N]", normalized=True), AddedToken("<a>", special=True, normalized=False)],
    "strips what follows": [AddedToken("<r>", rstrip=True, special=True), AddedToken("<a>", special=True)],
    "strips what is before": [AddedToken("<l>", lstrip=True, special=True), AddedToken("<a>", special=True)],
    "words alone": [AddedToken("<s>", single_word=True, special=True), AddedToken("<a>", special=True)],
}


@pytest.mark.parametrize("added", ADDED.values(), ids=ADDED)
def test_texts_in_a_batch_have_their_tokens(tokenizer, added):
    tokenizer, draw = deepcopy(tokenizer), random.Random(0)
    tokenizer.add_tokens(added)
    texts = ["", *("".join(draw.choices(PARTS, k=draw.randint(1, 12))) for _ in range(400))]
    align = Aligner(tokenizer)
    align.prepare(texts[:300])
    for text in texts:
        assert list(align(text).ids) == tokenizer(text, add_special_tokens=False)["input_ids"], text
