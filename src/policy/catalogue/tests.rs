//! What the built-in catalogue knows, and what it must not take for something it knows.

use super::*;

fn told(host: &str, path: &str) -> String {
    let catalogue = Catalogue::builtin();
    let some = |text: &'static str| (!text.is_empty()).then_some(text.as_bytes());
    let (host, path) = (String::leak(host.to_owned()), String::leak(path.to_owned()));
    match catalogue.find(some(host), some(path)) {
        None => "-".to_owned(),
        Some(known) => {
            let operation = known.operation.map_or("-", Operation::name);
            format!("{} {operation} {}", known.provider, known.class)
        }
    }
}

#[test]
fn providers_are_known_by_host_and_path() {
    for (host, path, want) in [
        ("api.openai.com", "/v1/chat/completions", "openai chat interactive"),
        ("API.OpenAI.com.", "", "openai - interactive"),
        ("eu.api.openai.com:443", "/v1/embeddings", "openai embedding batch"),
        ("api.openai.com", "/v1/batches/b_1/cancel", "openai batch bulk"),
        ("api.openai.com", "/v1/files", "openai files bulk"),
        ("api.openai.com", "/v1/models?limit=2", "openai models interactive"),
        ("api.openai.com", "/v1/unknown", "openai - interactive"),
        (
            "x.openai.azure.com",
            "/openai/deployments/g/chat/completions?api-version=1",
            "azure-openai chat interactive",
        ),
        ("api.anthropic.com", "/v1/messages", "anthropic chat interactive"),
        ("api.anthropic.com", "/v1/messages/batches", "anthropic batch bulk"),
        (
            "generativelanguage.googleapis.com",
            "/v1beta/models/gemini-2.5-pro:streamGenerateContent?alt=sse",
            "gemini chat interactive",
        ),
        (
            "us-central1-aiplatform.googleapis.com",
            "/v1/projects/p/locations/l/publishers/google/models/m:generateContent",
            "vertex chat interactive",
        ),
        (
            "bedrock-runtime.eu-west-1.amazonaws.com",
            "/model/a.b-v1%3A0/converse-stream",
            "bedrock chat interactive",
        ),
        ("api.mistral.ai", "/v1/chat/completions", "mistral chat interactive"),
        ("api.cohere.com", "/v2/embed", "cohere embedding batch"),
        ("api.groq.com", "/openai/v1/chat/completions", "groq chat interactive"),
        ("api.together.xyz", "/v1/completions", "together completion interactive"),
        ("openrouter.ai", "/api/v1/chat/completions", "openrouter chat interactive"),
        ("openrouter.ai", "/api/v1/messages", "openrouter chat interactive"),
        ("openrouter.ai", "/api/v1/responses", "openrouter chat interactive"),
        ("openrouter.ai", "/api/v1/embeddings", "openrouter embedding batch"),
        ("x.openai.azure.com", "/openai/responses", "azure-openai chat interactive"),
        (
            "x.services.ai.azure.com",
            "/models/chat/completions?api-version=2024-05-01-preview",
            "azure-openai chat interactive",
        ),
        ("x.services.ai.azure.com", "/models/embeddings", "azure-openai embedding batch"),
        ("api.mistral.ai", "/v1/fim/completions", "mistral completion interactive"),
        ("api.mistral.ai", "/v1/agents/completions", "mistral chat interactive"),
        ("api.deepseek.com", "/beta/completions", "deepseek completion interactive"),
        ("api.replicate.com", "/v1/predictions", "replicate completion interactive"),
        ("api.replicate.com", "/v1/models/o/m/predictions", "replicate completion interactive"),
        ("api.replicate.com", "/v1/models/o/m", "replicate models interactive"),
        (
            "vpce-0a1b-c2d3-us-east-1a.bedrock-runtime.us-east-1.vpce.amazonaws.com",
            "/model/m/converse",
            "bedrock chat interactive",
        ),
        ("bedrock-runtime.cn-north-1.amazonaws.com.cn", "", "bedrock - interactive"),
        ("bedrock-runtime.eu-west-1.api.aws", "", "bedrock - interactive"),
    ] {
        assert_eq!(told(host, path), want, "{host} {path}");
    }
}

#[test]
fn servers_of_ones_own_are_known_by_path() {
    for (path, want) in [
        ("/v1/chat/completions", "openai-compatible chat interactive"),
        ("/v1/messages", "anthropic-compatible chat interactive"),
        ("/generate_stream", "tgi completion interactive"),
        ("/get_model_info", "sglang models interactive"),
        ("/v1/load_lora_adapter", "vllm models interactive"),
        ("/v2/models/llama/infer", "kserve completion interactive"),
        ("/inference.GRPCInferenceService/ModelInfer", "kserve completion interactive"),
        ("/inference.GRPCInferenceService/ServerReady", "kserve models interactive"),
        ("http://10.0.0.1:8000/v1/completions", "openai-compatible completion interactive"),
        ("/v1/files", "openai-compatible files bulk"),
        ("/v1/batches/b_1", "openai-compatible batch bulk"),
        ("/v1/models", "openai-compatible models interactive"),
        ("/v1/audio/transcriptions", "openai-compatible audio batch"),
        ("/generate", "self-hosted completion interactive"),
        ("/rerank", "self-hosted rerank batch"),
        ("/v1/rerank", "self-hosted rerank batch"),
        ("/v2/rerank", "cohere-compatible rerank batch"),
        ("/v1/score", "self-hosted rerank batch"),
        ("/score", "vllm rerank batch"),
        ("/pooling", "vllm embedding batch"),
        ("/classify", "self-hosted embedding batch"),
        ("/tokenize", "self-hosted completion interactive"),
        ("/detokenize", "self-hosted completion interactive"),
        ("/encode", "sglang embedding batch"),
        ("/openai/responses", "openai-compatible chat interactive"),
        ("/v1/predictions", "-"),
        ("/v1/filesystem", "-"),
        ("/", "-"),
        ("/v1/chat/completions/x", "-"),
        ("*", "-"),
    ] {
        assert_eq!(told("10.0.0.1:8000", path), want, "{path}");
        assert_eq!(told("", path), want, "{path}");
    }
}

#[test]
fn lookalikes_are_nobody() {
    for host in [
        "api.openai.com.evil.example",
        "xapi.openai.com",
        "api-openai.com",
        "openai.com",
        "api.openai.comx",
        ".api.openai.com",
        "a..api.openai.com",
        "openai.azure.com",
        "bedrock-runtime.amazonaws.com",
        "bedrock-runtime.a.b.amazonaws.com",
        "x.bedrock-runtime.us-east-1.vpce.amazonaws.com",
        "vpce-1.s3.us-east-1.vpce.amazonaws.com",
        "bedrock-runtime.eu-west-1.amazonaws.com.cnx",
        "-aiplatform.googleapis.com",
        "",
        ".",
        "com",
        "api.anthropic.com@evil.example",
        "[2001:db8::1]:443",
    ] {
        assert_eq!(told(host, ""), "-", "{host}");
    }
    assert_eq!(told(&"a".repeat(300), ""), "-");
}

#[test]
fn a_file_adds_and_replaces() {
    let text = "[class]\nembedding = \"bulk\"\n\
        [provider.openai]\nhost = [\"llm.corp.example\"]\napi = [\"openai\"]\nclass = \"gold\"\n";
    let catalogue = Catalogue::with(Some(("own.toml".as_ref(), text))).expect("sound");
    let find = |host: &str, path: &str| {
        let known = catalogue.find(Some(host.as_bytes()), Some(path.as_bytes()));
        known.map(|k| (k.provider.to_owned(), k.class.to_owned()))
    };
    let known = |provider: &str, class: &str| Some((provider.to_owned(), class.to_owned()));
    assert_eq!(find("llm.corp.example", "/x"), known("openai", "gold"));
    assert_eq!(find("llm.corp.example", "/v1/embeddings"), known("openai", "bulk"));
    assert_eq!(find("api.openai.com", "/x"), None);
    assert_eq!(find("api.groq.com", "/x"), known("groq", "interactive"));
}

#[test]
fn faults_are_told_at_their_place() {
    let text = "[api.own.path]\n\"v1\" = \"chat\"\n\"/a\" = \"chatt\"\n\
        [provider.own]\nhost = [\"*.com\", \"a.example\"]\napi = [\"own\", \"nope\"]\nhosts = 1\n";
    let mut faults = Catalogue::with(Some(("own.toml".as_ref(), text))).expect_err("faulty");
    faults.sort();
    let told: Vec<String> = faults.iter().map(ToString::to_string).collect();
    for (i, start) in [
        "own.toml:2:8: error: path \"v1\" does not begin with `/`",
        "own.toml:3:8: error: ",
        "own.toml:5:9: error: host \"*.com\" needs two labels",
        "own.toml:6:15: error: unknown API \"nope\"",
        "own.toml:7:1: error: ",
    ]
    .iter()
    .enumerate()
    {
        assert!(told[i].starts_with(start), "{told:#?}");
    }
    assert_eq!(told.len(), 5, "{told:#?}");
}
