_base_ = 'upernet_datnano_shapes.py'

model = dict(backbone=dict(_delete_=True, **_base_.datppnano))
