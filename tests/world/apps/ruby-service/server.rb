require "rack"

app, = Rack::Builder.parse_file("config.ru")
puts Rack::MockRequest.new(app).get("/").body
