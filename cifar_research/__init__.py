"""A research framework for image classification on CIFAR-10: composed with Hydra, trained with tf.GradientTape."""
