"""Names by which an objective and a noise handler tell each other of particles and noise."""

PARTICLES = "num_particles_vectorized"  # the plate of pyro.infer.ELBO; seen in Pyro 1.9.2
NOISE = "noise"  # in a site's "infer": the handler of `pyro_vae.noise` that has drawn it, and which of these it lacks
INDEPENDENT, FRESH = "independent particles", "new noise at every step"
