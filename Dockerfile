# docker build -t hf_recipes .                                                               for a CPU
# docker build -t hf_recipes --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu130 .    for NVIDIA's cards
FROM python:3.11-slim
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
# DeepSpeed and bitsandbytes' kernels are compiled where they are first used; the fonts are those of the pictures.
RUN apt-get update && apt-get install -y --no-install-recommends g++ git fonts-noto-cjk && rm -rf /var/lib/apt/lists/*
WORKDIR /opt/hf_recipes
COPY constraints.txt ./
RUN pip install --no-cache-dir torch==2.13.0 --index-url "$TORCH_INDEX"
COPY . .
RUN pip install --no-cache-dir -c constraints.txt '.[chat,corpus,deepspeed,excel,gguf,modelscope,tensorboard,viewer]'
# Nothing of a run belongs to root: docker run --rm -it --user "$(id -u)" -v "$PWD:/work" hf_recipes sft …
ENV HOME=/tmp
WORKDIR /work
ENTRYPOINT ["hf-recipes"]
CMD ["--help"]
