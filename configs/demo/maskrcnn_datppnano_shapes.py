_base_ = 'maskrcnn_datnano_shapes.py'

model = dict(backbone=dict(_delete_=True, **_base_.datppnano))
