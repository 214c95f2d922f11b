"""What is taken for a secret in a record, and what is not."""

import pytest

from igpt.runs.redaction import redact, written_secret


@pytest.mark.parametrize(
    "text",
    [
        "aws_secret_access_key = HUNTER",
        "password: HUNTER",
        '{"secret_key": "HUNTER HUNTER"}',
        "api_key='HUNTER HUNTER'",
        "Authorization: Bearer HUNTERHUNTER",
        "-----BEGIN RSA PRIVATE KEY-----\nHUNTER\n-----END RSA PRIVATE KEY-----",
        "+export HF_TOKEN=HUNTER",
        "Authorization: Basic HUNTERHUNTER",
        "https://hooks.slack.com/services/T0/B0/HUNTER",
        "hf_HUNTERHUNTERHUNTER",
    ],
)
def test_what_is_named_or_looks_like_a_secret_is_blanked(text: str) -> None:
    assert "HUNTER" not in redact(text)


def test_credentials_in_an_address_are_blanked() -> None:
    assert (
        redact("http://me:pw@host/x secret_key=abc b=1") == "http://***@host/x secret_key=*** b=1"
    )


@pytest.mark.parametrize(
    "text",
    [
        "export WANDB_API_KEY=hunter",
        "export WANDB_API_KEY='hunter two'",
        "export A=1 HF_TOKEN=hunter; module load cuda",
        "env AWS_SECRET_ACCESS_KEY=hunter python",
        "--export=ALL,HF_TOKEN=hunter",
        "huggingface-cli login --token hunter",
        "wandb login 0123456789abcdef0123456789abcdef01234567",
        "curl -H Authorization: Bearer hunterhunter https://example.org",
        "curl -H X-Api-Key: hunter https://example.org",
        "git clone https://me:hunter@example.org/x",
        "export HTTPS_PROXY=http://me:hunter@proxy:3128",
        """echo '{"api_key": "hunter"}' > ~/.config""",
        "aws_secret_access_key = hunter",
        "curl https://hooks.slack.com/services/T0123/B0123/hunter",
    ],
)
def test_a_secret_that_is_written_out_is_found_and_not_repeated(text: str) -> None:
    found = written_secret(text)
    assert found
    assert "hunter" not in found


@pytest.mark.parametrize(
    "text",
    [
        "export WANDB_API_KEY=$(cat ~/.wandb_key)",
        "export WANDB_API_KEY=$(<~/.wandb_key)",
        "export WANDB_API_KEY=`cat ~/.wandb_key`",
        "export WANDB_API_KEY=$(gcloud secrets versions access latest --secret=wandb)",
        'export HF_TOKEN="$MY_TOKEN"',
        "export HF_TOKEN=${MY_TOKEN:-none}",
        'export HF_TOKEN=""; unset HF_TOKEN',
        '[ "$HF_TOKEN" = "" ] && exit 1',
        ': "${HF_TOKEN:?is not set}"',
        "source ~/.secrets",
        ". /shared/secrets/token.sh",
        "export HF_TOKEN_PATH=/home/me/.token",
        "export AWS_SHARED_CREDENTIALS_FILE=creds",
        "export GOOGLE_APPLICATION_CREDENTIALS=/home/Me/key.json",
        "export TOKENIZERS_PARALLELISM=false",
        "export HF_HUB_DISABLE_IMPLICIT_TOKEN=1",
        "export MAX_TOKENS=4096",
        "export NCCL_DEBUG=INFO",
        "module load cuda/12.4 nccl",
        "--container-image=docker://org/tokenizers:1.2",
        "--container-mounts=/etc/passwd:/etc/passwd:ro,/run/secrets:/run/secrets",
        "--container-env=HF_TOKEN,WANDB_API_KEY",
        "git clone ssh://git@example.org/x",
        "git clone https://oauth2:$TOKEN@example.org/x",
        """sh -c curl -H "Authorization: Bearer $TOKEN" https://example.org""",
        "a study of keys and tokens",
    ],
)
def test_what_is_read_from_elsewhere_or_is_no_secret_is_none(text: str) -> None:
    assert written_secret(text) is None
