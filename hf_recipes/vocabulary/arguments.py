"""Settings of the commands that train and extend tokenizers, and extend models."""

from dataclasses import dataclass
from typing import Annotated, Literal

from hf_recipes.core.arguments.limits import NonNegativeInt, PositiveInt, Share, at, check_limits
from hf_recipes.core.arguments.settings import setting
from hf_recipes.data.files.specs import DATA_HELP
from hf_recipes.data.schemas.registry import DOCUMENT_SCHEMAS

ROW_MULTIPLE = 64


@dataclass
class TextArguments:
    """Which texts, and how much of them."""

    train_file: list[str] | None = setting(f"{DATA_HELP}, or name=one of them; each is a source.")
    mixture: str | None = setting("Policy file: the share of each source by bytes.")
    schema: str | None = setting(f"Shape of the rows ({', '.join(DOCUMENT_SCHEMAS)}); detected by default.")
    prompt_column: str | None = setting("Column of the text.")
    ignore_columns: list[str] | None = setting(
        "Columns, and keys of turns as messages[].ts, to leave out, also those that usually carry meaning (context, …)."
    )
    encoding: str | None = setting("Encoding of text files (shift_jis, big5, euc_kr, …); detected by default.")
    max_bytes: Annotated[int, at(ge=1000)] = setting("Learn from a random sample of so many bytes.", 50_000_000)
    held_out_share: Annotated[float, at(ge=0, lt=1, text="a share from 0 to below 1")] = setting(
        "Share of the texts of each source that is measured on, not learned from; at most 1 MB of each.", 0.02
    )
    seed: NonNegativeInt = setting("Of the random sample.", 42)
    max_drop_ratio: Share = setting("Stop when more than this share of the rows cannot be used.", 0.01)
    cache_dir: str | None = setting("Where downloads are cached.")

    def __post_init__(self):
        check_limits(self)
        if self.schema is not None and self.schema not in DOCUMENT_SCHEMAS:
            raise ValueError(f"--schema {self.schema}: expected one of {', '.join(DOCUMENT_SCHEMAS)}")
        if self.mixture and not self.train_file:
            raise ValueError("--mixture has no effect without --train_file")


@dataclass
class TrainTokenizerArguments(TextArguments):
    """The tokenizer to train."""

    output_dir: str | None = setting("Folder of the tokenizer.")
    model_type: Literal["byte_level_bpe", "bpe", "unigram"] = setting(
        "byte_level_bpe (tokenizer.json), or SentencePiece's bpe or unigram (tokenizer.model and tokenizer.json).",
        "byte_level_bpe",
    )
    vocab_size: Annotated[int, at(ge=2)] = setting("Tokens, special ones included.", 32_000)
    character_coverage: Annotated[float, at(ge=0.98, le=1)] = setting(
        "SentencePiece: share of the characters of the texts that become pieces; the others are written as bytes.",
        0.9995,
    )
    split_digits: bool = setting("One token for each digit.", True)
    byte_fallback: bool = setting("SentencePiece: write other characters as bytes, not as unknown.", True)
    special_tokens: str | None = setting("File of special tokens (configs/special_tokens).")

    def __post_init__(self):
        super().__post_init__()
        if not self.train_file:
            raise ValueError("--train_file is missing: the texts to learn from")
        if not self.output_dir:
            raise ValueError("--output_dir is missing: where the tokenizer goes")


@dataclass
class ExtendTokenizerArguments(TextArguments):
    """The tokenizer to extend, and by what."""

    tokenizer_name: str | None = setting("Folder or Hub id of the tokenizer, or of its model.")
    output_dir: str | None = setting("Folder of the extended tokenizer.")
    num_new_tokens: NonNegativeInt = setting("Tokens to learn from the texts.", 0)
    words: str | None = setting("File of words that become tokens: one a line, alone or with a tab and its count.")
    special_tokens: str | None = setting("File of special tokens to add (configs/special_tokens).")
    max_token_length: Annotated[int, at(ge=2)] = setting("Characters of a new token, at most.", 16)
    character_coverage: Annotated[float, at(gt=0, le=1, text="a share from above 0 to 1")] = setting(
        "SentencePiece: share of the characters of the texts that are pieces; rarer ones stay bytes.", 0.9995
    )
    trust_remote_code: bool = setting("Run code that comes with the tokenizer.", False)

    def __post_init__(self):
        super().__post_init__()
        if not self.tokenizer_name:
            raise ValueError("--tokenizer_name is missing: the tokenizer to extend")
        if not self.output_dir:
            raise ValueError("--output_dir is missing: where the extended tokenizer goes")
        if not (self.num_new_tokens or self.words or self.special_tokens):
            raise ValueError("nothing to add: give --train_file and --num_new_tokens, --words or --special_tokens")
        if self.num_new_tokens and not self.train_file:
            raise ValueError("--num_new_tokens needs --train_file: the texts to learn tokens from")


@dataclass
class ExtendModelArguments:
    """The model, the tokenizer that it is to follow, and how the embeddings of its new tokens begin."""

    model_name_or_path: str | None = setting("The model.")
    tokenizer_name: str | None = setting("The extended tokenizer (extend_tokenizer.py).")
    output_dir: str | None = setting("Folder of the extended model.")
    initialization: Literal["mean", "weighted", "random"] = setting(
        "A new token's embedding: the mean of the embeddings of the old tokens of its text; that mean weighted by "
        "position (input: later ones more, output: earlier ones more); or random, for comparison.",
        "mean",
    )
    pad_to_multiple_of: PositiveInt = setting("Rows of the embeddings: a multiple of this.", ROW_MULTIPLE)
    validation_file: list[str] | None = setting("Texts to measure bits per character on, before and after.")
    max_eval_bytes: PositiveInt = setting("Bytes of --validation_file to measure on.", 20_000)
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = setting("Of the saved weights; auto: as before.", "auto")
    seed: NonNegativeInt = setting("Of random embeddings.", 42)
    trust_remote_code: bool = setting("Run code that comes with the model.", False)
    cache_dir: str | None = setting("Where downloads are cached.")

    def __post_init__(self):
        check_limits(self)
        for name, what in (
            ("model_name_or_path", "the model"),
            ("tokenizer_name", "the extended tokenizer"),
            ("output_dir", "where the extended model goes"),
        ):
            if not getattr(self, name):
                raise ValueError(f"--{name} is missing: {what}")
