#!/usr/bin/env bash
# Trains resampler and language model at overlap 0 from a vision checkpoint that was trained at overlap 0.5.
set -euo pipefail
cd "$(dirname "$0")/.."

CONFIG=configs/bimamba_overlap0.yaml
# The checkpoint to start from; one of a run with another resampler serves as well.
VISION_CHECKPOINT="runs/siglip2-so400m_Qwen3_bimamba_anyres-e2p_PE/vision/anyres-e2p_bimamba/best.ckpt"

if [ ! -e "$VISION_CHECKPOINT" ]; then
    echo "error: there is no vision checkpoint $VISION_CHECKPOINT" >&2
    echo "  -> train one (python scripts/train.py --config configs/default.yaml), or set VISION_CHECKPOINT= in $0 to one of:" >&2
    ls runs/*/vision/*/best.ckpt >&2 2>/dev/null || echo "     (none found in runs/*/vision/*/)" >&2
    exit 2
fi
exec "${PYTHON:-python}" scripts/train.py --config "$CONFIG" --resume "$VISION_CHECKPOINT" "$@"
