# DAT-B. Necks and heads take their input channels from here.
arch = 'base'
channels = [128, 256, 512, 1024]
