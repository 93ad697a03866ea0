"""Settings of a corpus."""

from dataclasses import dataclass
from typing import Annotated, Literal

from hf_recipes.core.arguments.limits import NonNegativeInt, PositiveInt, Share, at
from hf_recipes.core.arguments.settings import setting
from hf_recipes.corpus.cleaning import MIN_CHINESE
from hf_recipes.corpus.executors import ExecutorArguments
from hf_recipes.data.files.specs import DATA_HELP
from hf_recipes.data.schemas.registry import DOCUMENT_SCHEMAS


@dataclass
class CorpusArguments(ExecutorArguments):
    """The documents, the repairs and rules, and the shards."""

    input_files: list[str] | None = setting(f"{DATA_HELP}, or name=one of them; each is a source.")
    output_dir: str | None = setting("Folder of the corpus; a folder in it for each source.")
    schema: str | None = setting(f"Shape of the rows ({', '.join(DOCUMENT_SCHEMAS)}); detected by default.")
    prompt_column: str | None = setting("Column of the text, or of the question.")
    response_column: str | None = setting("Column of the answer.")
    ignore_columns: list[str] | None = setting(
        "Columns, and keys of turns as messages[].ts, to leave out, also those that usually carry meaning (context, …)."
    )
    encoding: str | None = setting("Encoding of text files (shift_jis, big5, euc_kr, …); detected by default.")
    txt_documents: Literal["lines", "blank", "entry"] | None = setting(
        "Documents of a .txt file: lines, separated by blank lines, or 词条： entries; detected by default."
    )
    drop_repeats: bool = setting(
        "Leave out documents and paragraphs that MNBVC marks as repeats (是否重复, 是否跨文件重复, 是否重复文件).",
        False,
    )
    wiki_markup: bool = setting("Remove wiki markup: links, templates, tables, references, headings' signs.", False)
    control_characters: bool = setting("Remove control characters.", False)
    nfkc: bool = setting("Normalize to NFKC, except Chinese punctuation and programs.", False)
    simplify: bool = setting("Traditional → Simplified Chinese.", False)
    min_chars: NonNegativeInt | None = setting("Drop documents of fewer characters.")
    max_chars: PositiveInt | None = setting("Drop documents of more characters.")
    quality: bool = setting("Drop what is not Chinese prose by the rules of hf_recipes/corpus/cleaning.py.", False)
    min_chinese: Share = setting("With --quality: smallest share of Chinese characters.", MIN_CHINESE)
    exact_dedup: bool = setting("Drop documents that equal an earlier one.", False)
    near_dedup: bool = setting("Drop documents that nearly equal an earlier one (MinHash).", False)
    decontaminate: list[str] | None = setting("Evaluation files; documents that share text with them are dropped.")
    decontamination_ngram: Annotated[int, at(ge=5)] = setting(
        "Number of consecutive words or Chinese characters that count as shared text.", 20
    )
    privacy: bool = setting("Replace personal data by placeholders.", False)
    privacy_names: list[str] | None = setting("With --privacy: names of people to replace too.")
    shard_size: PositiveInt = setting("Documents in a shard.", 20_000)
    tokenize: bool = setting("Write token shards instead of text.", False)
    model_name_or_path: str | None = setting("With --tokenize: model of the tokenizer.")
    document_end_token: str | None = setting("With --tokenize: last token of a document; by default the eos token.")
    trust_remote_code: bool = setting("Run code that comes with the tokenizer.", False)
    max_drop_ratio: Share = setting("Stop when more than this share of the rows cannot be used at all.", 0.01)
    cache_dir: str | None = setting("Where downloads are cached.")
    overwrite_output_dir: bool = setting("Start over in a folder that holds an earlier run.", False)

    def __post_init__(self):
        super().__post_init__()
        if not self.input_files:
            raise ValueError("--input_files is missing: the documents")
        if not self.output_dir:
            raise ValueError("--output_dir is missing: where the corpus goes")
        if self.schema is not None and self.schema not in DOCUMENT_SCHEMAS:
            raise ValueError(f"--schema {self.schema}: expected one of {', '.join(DOCUMENT_SCHEMAS)}")
        if (self.min_chars or 0) > (self.max_chars or float("inf")):
            raise ValueError(f"--min_chars {self.min_chars} is more than --max_chars {self.max_chars}")
        if self.tokenize != bool(self.model_name_or_path):
            raise ValueError("--tokenize and --model_name_or_path go together: name the model of the tokenizer")
        if self.document_end_token and not self.tokenize:
            raise ValueError("--document_end_token has no effect without --tokenize")
        if self.privacy_names and not self.privacy:
            raise ValueError("--privacy_names has no effect without --privacy")

    @property
    def repairs(self) -> list[str]:
        """Keys of `steps.REPAIRS`."""
        is_on = {"wiki markup": self.wiki_markup, "control characters": self.control_characters, "NFKC": self.nfkc}
        is_on |= {"traditional characters": self.simplify}
        return [name for name, on in is_on.items() if on]
