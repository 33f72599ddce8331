# Shards parameters, gradients and the optimizer's state over the processes (FSDP), one unit per block of the backbone:
#
#   bash tools/dist_train.sh configs/cascade_maskrcnn_dat_b_3x_coco.py 8 --override configs/sharded/fsdp.py
#
# Checkpoints are whole models, as without it. docs/reliability.md says what was tested, and what it does not go with.
runner_type = 'FlexibleRunner'
strategy = dict(
    type='FSDPStrategy',
    state_dict_cfg='full',
    model_wrapper=dict(
        type='MMFullyShardedDataParallel',
        use_orig_params=True,
        auto_wrap_policy='mmdat.config.sharding.is_block',
    ),
)
