"""`Stage` is what differs between the stages, and `run` what is the same in all of them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from hf_recipes.core.arguments.settings import Parser
from hf_recipes.core.errors import UserError, say
from hf_recipes.core.ledger import Ledger
from hf_recipes.core.script import json_to_stdout
from hf_recipes.data.arguments import DataArguments, SourceArguments
from hf_recipes.dry_run.data_stats import DataStats
from hf_recipes.dry_run.peak_memory import PeakMemory
from hf_recipes.dry_run.plan import make_plan, outline
from hf_recipes.evaluation.method import Method
from hf_recipes.evaluation.registry import EvaluationArguments
from hf_recipes.models.adapters.peft_workarounds import token_rows_on_cpu
from hf_recipes.models.arguments import ModelArguments
from hf_recipes.models.loading import embedding_rows, load_config, load_model
from hf_recipes.models.new_tokens import read_new_tokens
from hf_recipes.models.templates.options import TemplateArguments, thinking_templates
from hf_recipes.models.tokenizers.special_tokens import read_special_tokens
from hf_recipes.models.tokenizers.tokenizer import load_tokenizer
from hf_recipes.publishing.model_card import CardWords
from hf_recipes.run.arguments import RunArguments
from hf_recipes.run.data import check_evaluation_rows, prepare_rows
from hf_recipes.run.evaluate_callback import add_callbacks, choose_best_by
from hf_recipes.run.model import build_model, build_reference, check_settings
from hf_recipes.run.optimization import check_length
from hf_recipes.run.run_folder import RunFolder
from hf_recipes.run.train import train
from hf_recipes.trainer.base import RunMixin

RESUME_HINT = "resume with --resume_from_checkpoint true"


@dataclass
class Data:
    """What a run trains and evaluates on (rows, prompts, or a mixture of documents), and the ledger of all rows."""

    train: Any
    validation: Any
    ledgers: dict[str, Ledger]


@dataclass
class Context:
    """A run before its weights are read: settings, configuration and tokenizer."""

    stage: "Stage"
    model_args: ModelArguments
    data_args: SourceArguments
    args: RunArguments
    evaluation: EvaluationArguments
    tokenizer: PreTrainedTokenizerBase | None = None
    added_tokens: Sequence[str] = ()
    config: PretrainedConfig | None = None

    def open(self) -> None:
        """Read the configuration and the tokenizer."""
        args, read_config = self.args, self.stage.read_config
        source = {"trust_remote_code": args.trust_remote_code, "cache_dir": self.data_args.cache_dir}
        if read_config is None:
            self.config = load_config(self.model_args, **source)
        self.load_tokenizer()
        if read_config is not None:
            self.config = read_config(self.model_args, self.tokenizer, **source)

    def load_tokenizer(self) -> None:
        self.tokenizer, self.added_tokens = load_tokenizer(
            self.model_args.tokenizer_source,
            **(self.args.template_settings() if isinstance(self.args, TemplateArguments) else {}),
            **self.stage.tokenizer,
            special_tokens=self.args.add_special_tokens,
            eos_token=self.args.eos_token,
            rows=embedding_rows(self.model_args, self.data_args.cache_dir) or 0,
            ends=filter(None, [getattr(self.args, "document_end_token", None)]),
            revision=self.model_args.model_revision,
            trust_remote_code=self.args.trust_remote_code,
            cache_dir=self.data_args.cache_dir,
        )
        args = self.model_args
        if args.use_lora and not args.peft_path and args.train_new_tokens:
            ids = read_new_tokens(args.model_name_or_path, args.model_revision, self.data_args.cache_dir)
            self.added_tokens = [*self.added_tokens, *self.tokenizer.convert_ids_to_tokens(list(ids))]
        if args.peft_path and self.added_tokens:
            raise UserError(
                f"--peft_path {args.peft_path}: the chat template writes tokens that it was not trained with "
                f"({' '.join(self.added_tokens)}); leave --chat_template out to keep the adapter's own"
            )

    def descriptions(self) -> dict[str, str]:
        """Of the special tokens that --add_special_tokens added; their embeddings begin from these."""
        path = self.args.add_special_tokens
        described = read_special_tokens(path).tokens if path else {}
        return {token: described[token] for token in self.added_tokens if token in described}

    def model_facts(self) -> dict[str, Any]:
        """For --json: the settings of thinking that the chat template can switch between, the default first."""
        config, tokenizer = self.config.get_text_config(), self.tokenizer
        return {
            "type": self.config.model_type,
            "context": getattr(config, "max_position_embeddings", None),
            "chat_template": bool(tokenizer.chat_template),
            "thinking": list(thinking_templates(tokenizer)) if tokenizer.chat_template else [],
        }

    @property
    def evaluates_files(self) -> bool:
        """Whether there are files to evaluate on in addition to the validation rows."""
        return bool(self.evaluation.eval_files)

    @property
    def continues_adapter(self) -> bool:
        """Whether the model's adapter was trained before."""
        return self.model_args.peft_path is not None

    @property
    def keeps_reference(self) -> bool:
        """Whether the trained weights are kept as they were at the start too; see `trainer.reference`."""
        before = getattr(self.args, "precompute_ref_log_probs", False)
        return self.args.has_reference and (self.continues_adapter or not (self.model_args.use_lora or before))


def read_examples(context: Context) -> Data:
    """Examples of the stage's form, encoded; see `prepare_rows`."""
    stage, args = context.stage, context.args
    encoder = partial(stage.encoder, context.tokenizer)
    return Data(*prepare_rows(context.data_args, args, encoder, form=stage.data_form))


@dataclass(frozen=True)
class Stage:
    """What differs between the stages.

    The functions take the run's `Context`, and its `Data` once they are read. They raise UserError for what cannot
    work, before a weight is read.
    """

    name: str  # of its script, and how its recipes begin
    arguments: type[RunArguments]
    forms: tuple[str, ...]  # of the rows that it is trained on; the first is the main one
    data_stats: Callable[[Context, Data], DataStats]  # sizes, and the largest batch, for the dry run
    evaluations: Callable[[Context, Data], dict[str, Method]]  # by name; that of the validation rows is empty
    trainer: Callable[..., RunMixin]  # of context, data, model, evaluations, and the reference where it has one
    card: CardWords
    legend: str  # of the tokens in an inspection; {} are settings
    encoder: Callable[..., Any] | None = None  # of tokenizer, arguments and the rows' name; see `tokenize_dataset`
    read: Callable[[Context], Data] = read_examples
    data: type[SourceArguments] = DataArguments
    model: type[ModelArguments] = ModelArguments
    tokenizer: Mapping[str, bool] = field(default_factory=dict)  # for `load_tokenizer`
    read_config: Callable[..., PretrainedConfig] | None = None  # where it needs the tokenizer
    load_model: Callable[[Context], Callable[..., PreTrainedModel]] = lambda context: load_model
    task_type: str = "CAUSAL_LM"  # PEFT's; SEQ_CLS for a model that scores
    freeze: Callable[[Context], Callable[[PreTrainedModel], None]] = lambda context: lambda model: None
    # The error to raise where packed rows would see each other; None where none are.
    packing_error: Callable[[Context], UserError | None] = lambda context: None

    @property
    def data_form(self) -> str:
        return self.forms[0]


def run(stage: Stage, argv: Sequence[str] | None = None) -> None:
    """A whole run of `stage`, from its command line to a folder with the trained weights, metrics and model card."""
    parser = Parser([stage.model, stage.data, stage.arguments, EvaluationArguments])
    context = Context(stage, *parser.parse(argv))
    model_args, args = context.model_args, context.args
    if args.json and not args.dry_run:
        raise UserError("--json is for --dry_run: a run writes its figures to metrics.json and log.jsonl")
    show_json = json_to_stdout(args.json)
    check_settings(model_args, args, stage.task_type)
    check_evaluation_rows(context.data_args, args, context.evaluates_files)
    if "learning_rate" not in parser.given:
        say(args.learning_rate_by_default(model_args.use_lora))
    folder = RunFolder(parser, model_args, args)
    context.open()
    building = {"packing_error": stage.packing_error(context), "freeze": stage.freeze(context)}
    model = outline(
        *(model_args, args, context.config, context.tokenizer, context.added_tokens),
        **building,
        is_reward=stage.task_type == "SEQ_CLS",
    )

    data = stage.read(context)
    methods = stage.evaluations(context, data)
    choose_best_by(args, parser.settings["greater_is_better"], methods)
    stats = stage.data_stats(context, data)
    plan = make_plan(
        *(model_args, args, context.config, context.tokenizer, model, stats),
        keeps_reference=context.keeps_reference,
        passes=[method.largest_pass(args.per_device_eval_batch_size) for method in methods.values()],
    )
    check_length(args, plan.steps)
    folder.compare_data(stats, plan.steps)
    if args.json and args.process_index == 0:
        ledgers = {name: ledger.to_dict() for name, ledger in data.ledgers.items()}
        figures = plan.to_dict() | {"seconds": plan.seconds(model, args)}
        show_json({"stage": stage.name, "model": context.model_facts(), **figures, "ledger": ledgers})
    elif not args.json:
        plan.show(whole=args.dry_run)
    if args.dry_run:
        return

    memory = PeakMemory(plan.memory)
    loading = {"make": stage.load_model(context), "descriptions": context.descriptions()}
    loading["cache_dir"] = context.data_args.cache_dir
    model = build_model(
        *(model_args, args, context.tokenizer, context.added_tokens),
        **building,
        task_type=stage.task_type,
        **loading,
    )
    reference = {}
    if args.has_reference:
        reference["reference"] = build_reference(model_args, args, context.tokenizer, **loading)
    folder.enter(stats)
    args.eval_on_start = args.eval_on_start and folder.checkpoint is None and bool(methods)
    with token_rows_on_cpu():  # TRL gives a model with an adapter a second one
        trainer = stage.trainer(context, data, model, methods, **reference)
    add_callbacks(trainer, methods)
    held_out = data.validation if getattr(context.data_args, "validation_split_percentage", None) else None
    train(trainer, folder, data.ledgers, held_out, memory, stage.card)
