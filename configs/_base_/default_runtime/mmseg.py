default_scope = 'mmseg'

# The interval of checkpoints belongs to the schedule: default_hooks is found there.

env_cfg = dict(
    cudnn_benchmark=True, mp_cfg=dict(mp_start_method='fork', opencv_num_threads=0), dist_cfg=dict(backend='nccl')
)

vis_backends = [dict(type='LocalVisBackend')]
visualizer = dict(type='SegLocalVisualizer', vis_backends=vis_backends, name='visualizer')
log_processor = dict(type='LogProcessor', window_size=50, by_epoch=False)

# tools/test.py --tta averages the predictions over the scales and flips of tta_pipeline.
tta_model = dict(type='SegTTAModel')

log_level = 'INFO'
load_from = None
resume = False
