# shellcheck shell=bash
# Sourced, not run: `source secrets.sh aws REGION` or `source secrets.sh gcp PROJECT`, before `ray start`, on every node.
# Exports the secrets of a run from the cloud's own store, which the node's role may read. Nothing is written to a file or
# printed, except Ray's token into ~/.ray/auth_token, readable by this user only: `ray status` and the autoscaler want it there.
#
# The store's names:  AWS SSM, SecureString: /dream-ray/NAME    GCP Secret Manager: dream-ray-NAME
# RAY_AUTH_TOKEN and SCORER_TOKEN are needed, OPENAI_API_KEY only where the config names it.
dream_ray_secret() {
    case $1 in
        aws) aws ssm get-parameter --region "$2" --name "/dream-ray/$3" --with-decryption --query Parameter.Value --output text ;;
        gcp) gcloud secrets versions access latest --project "$2" --secret "dream-ray-$3" ;;
        *) echo "secrets: the cloud '$1' is not known; it is aws or gcp" >&2; return 2 ;;
    esac
}
dream_ray_secrets() {
    local name value
    for name in RAY_AUTH_TOKEN SCORER_TOKEN OPENAI_API_KEY; do
        if value=$(dream_ray_secret "$1" "$2" "$name" 2>/dev/null) && [[ -n $value ]]; then
            export "$name=$value"
        elif [[ $name == OPENAI_API_KEY ]]; then
            echo "secrets: no $name in the store; configs that name it will be refused" >&2
        else
            echo "secrets: $name cannot be read from the store. Make it, and let the node's role read it (see docs)." >&2
            return 1
        fi
    done
    (umask 077 && mkdir -p ~/.ray && printf %s "$RAY_AUTH_TOKEN" >~/.ray/auth_token) || return 1
    export RAY_AUTH_MODE=token
}
dream_ray_secrets "$1" "$2"
