run ->(env) { [200, { "Content-Type" => "text/plain" }, ["hello from ruby"]] }
