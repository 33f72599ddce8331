_base_ = 'datnano_shapes.py'

model = dict(backbone=dict(_delete_=True, out_indices=(3,), **_base_.datppnano))
