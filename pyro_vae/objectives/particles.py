"""Names of particles and noise that objectives and noise handlers share."""

PARTICLES = "num_particles_vectorized"  # the particle plate of pyro.infer.ELBO, as of Pyro 1.9.2
NOISE = "noise"  # in a site's "infer": the handler of `pyro_vae.noise` that drew it, and which property below it lacks
INDEPENDENT, FRESH = "independent particles", "new noise at every step"
