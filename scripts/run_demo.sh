#!/bin/bash
# Answers two prompts with the demo model: a short chat, and one over several thousand tokens, long
# enough for block selection to be at work, in full and in sparse attention.
# MODEL=<Hugging Face directory> takes another model.
set -euo pipefail
cd "$(dirname "$0")/.."

run=${BUILD:-build}/bin/nosa-run
model=${MODEL:-}
if [ -z "$model" ]; then
    scripts/venv.sh
    model=$(.venv/bin/python tools/make_demo_model.py | tail -n 1)
fi
# Without an eviction head nosa's second cut has nothing to rank by: select by the query alone. The
# names of the tensors stand in the heads of the files.
sparse=infllmv2
for file in "$model"/*.safetensors; do
    if grep -aqF '.self_attn.delta.weight"' <(head -c 4M "$file" 2> /dev/null); then
        sparse=nosa
    fi
done
chat=(--chat)
if [ ! -e "$model/chat_template.jinja" ] &&
    ! grep -q '"chat_template"' "$model/tokenizer_config.json" 2> /dev/null; then
    chat=()
fi

# Several thousand tokens of other text, then the beginning of a licence to go on with.
long=$(mktemp)
trap 'rm -f "$long"' EXIT
cat docs/nosa.md DESIGN.md | head -c 14000 > "$long"
echo >> "$long"
head -c 4000 LICENSE >> "$long"

echo "--- a short prompt, full attention"
"$run" --model "$model" "${chat[@]}" --max-tokens 96 --attention full \
    --prompt "Explain in two sentences why the sky is blue."
echo
for attention in full "$sparse"; do
    echo "--- going on with a licence after several thousand tokens of other text, $attention attention"
    "$run" --model "$model" --max-tokens 48 --attention "$attention" --temperature 0 \
        --prompt-file "$long"
    echo
done
echo "The model is in $model. To go on:"
echo "    $run --model $model --chat --prompt \"Why is the sky blue?\""
