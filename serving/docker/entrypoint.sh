#!/bin/sh
# The same environment variables and the same way to add flags as in the image tensorflow/serving.
exec python -m serving \
  --port=8500 \
  --rest_api_port=8501 \
  --model_name="${MODEL_NAME:-model}" \
  --model_base_path="${MODEL_BASE_PATH:-/models}/${MODEL_NAME:-model}" \
  "$@"
