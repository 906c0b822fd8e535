from setuptools import find_packages, setup

# Pinned exactly, because these fit together in no other combination that was tried: the compiled
# parts (TFX, TensorFlow, ScaNN, Arrow, protobuf) share one C++ ABI. `make lock` resolves the rest.
REQUIREMENTS = [
    # Declares python<3.11, but every compiled wheel it needs exists for 3.11: uv ignores the upper
    # bound, plain pip refuses it. Newer ones (1.21) need glibc 2.38, which Debian 12 does not have.
    "tfx==1.16.0",
    "tensorflow==2.16.2",  # what tfx 1.16 and scann 1.3.2 are compiled against
    "tf-keras==2.16.0",  # Keras 2, which TFRS and TFT need; same minor as TensorFlow
    "tensorflow-recommenders==0.7.7",  # works on Keras 2; newest release
    "scann==1.3.2",  # its operations are compiled for TensorFlow 2.16 and no other minor
    "tensorflow-serving-api==2.16.1",  # tfx-bsl 1.16 needs 2.16
    # The Flink runner of 2.62 is on Maven mirrors that lack those of 2.63 to 2.69; 2.72 no longer
    # brings `dill`, which tfx-bsl 1.16 imports.
    "apache-beam==2.62.0",
    # The next five come with TFX. They are pinned here because our code imports them itself.
    "ml-metadata==1.16.0",
    "tensorflow-data-validation==1.16.1",
    "tensorflow-metadata==1.16.1",
    "tensorflow-transform==1.16.0",
    "tfx-bsl==1.16.1",
    "numpy==1.26.4",  # TensorFlow 2.16 and pyarrow 10 are compiled against numpy 1
    "pyarrow==10.0.1",  # TFT, TFDV and tfx-bsl 1.16 accept only 10.x
    "protobuf==4.25.9",  # tfx 1.16 and ml-metadata 1.16 need protobuf 4
    "grpcio==1.65.5",  # Beam 2.62 accepts nothing from 1.66 on
    "grpcio-health-checking==1.62.3",  # the newest that accepts protobuf 4
    "aiohttp==3.14.5",  # the REST interface
    "prometheus-client==0.26.0",  # the metrics page
    "google-crc32c==1.9.0",  # checksums of TFRecords
    "Jinja2==3.1.6",  # the report and the pages of lineage
    "matplotlib==3.11.2",  # figures of the report and of the benchmarks
    "psutil==7.2.2",  # memory of process trees
    "PyMySQL==1.2.4",  # looks whether a MySQL database holds ML Metadata, before its client writes
    "click==8.5.1",  # our terminal output is tested against it
    "rich==15.0.0",  # same
    "pydantic==2.14.3",  # the texts of configuration errors are built on its error types
    "PyYAML==6.0.3",  # configuration files
    "setuptools>=80,<81",  # 81 drops pkg_resources, which TFX 1.16 and Beam 2.62 import
]

# What benchmarks/ compares with and drives; nothing that runs in production needs them.
BENCHMARKS = [
    "hpack==4.2.0",  # headers of the load generator's calls
    "implicit==0.7.3",
    "playwright==1.65.2",  # moves the sliders of the explorer in a real browser
    "scipy==1.12.0",  # the newest that tfx 1.16 accepts
    "threadpoolctl==3.8.0",
]

# What `csmf compile` writes pipelines for Kubeflow with.
KUBEFLOW = ["kfp==2.13.0"]  # the newest that tfx 1.16 accepts

DEVELOPMENT = [
    *BENCHMARKS,
    *KUBEFLOW,
    "cryptography==50.0.2",  # throw-away certificates for the TLS tests
    "hypothesis==6.170.15",
    "kubernetes==26.1.0",  # its types say what a manifest may hold
    "packaging==26.3",  # compares requirements
    "ovmsclient==2023.1",  # a client of the TensorFlow Serving API that is not ours
    "pytest==9.2.0",
    "pytest-xdist==3.8.0",
    "mypy==2.4.1",  # exact, so that a new release's findings arrive with a change of the lock
    "ruff==0.17.5",  # same
    "grpc-stubs==1.53.0.6",
    "types-PyYAML==6.0.12.20261113",
    "types-protobuf==7.35.1.20260906",
]

setup(
    name="csmf",
    version="0.1.0",
    description="Multi-objective recommendation retrieval (CSMF) as a TFX pipeline and a server",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11,<3.12",
    packages=find_packages(
        include=[
            f"{top}{rest}"
            for top in (
                "pipeline",
                "components",
                "models",
                "schemas",
                "serving",
                "configs",
                "benchmarks",
            )
            for rest in ("", ".*")
        ]
    ),
    package_data={
        "configs": ["*.yaml"],
        "schemas": ["*.pbtxt"],
        "pipeline": ["*/templates/*", "*/static/*"],
        "benchmarks.serving": ["peers/*.py", "peers/*.txt"],
    },
    install_requires=REQUIREMENTS,
    extras_require={"benchmarks": BENCHMARKS, "kubeflow": KUBEFLOW, "dev": DEVELOPMENT},
    entry_points={"console_scripts": ["csmf=pipeline.cli:main"]},
)
