// SPDX-License-Identifier: Apache-2.0

//go:build server

// What the module does with a server that really builds: `go test -tags server ./...`, with the server named by the environment.

package sugar_test

import (
	"bytes"
	"os"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"kiln.dev/sdk/go/builder"
	"kiln.dev/sdk/go/contentservice"
	"kiln.dev/sdk/go/sugar"
)

func setting(t *testing.T, name string) string {
	t.Helper()
	value := os.Getenv(name)
	if value == "" {
		t.Fatalf("%s is not set: these tests need a server, see tests/src/sdk.rs", name)
	}
	return value
}

func dial(t *testing.T) *grpc.ClientConn {
	t.Helper()
	connection, err := grpc.NewClient(setting(t, "KILN_TEST_ADDRESS"), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { connection.Close() })
	return connection
}

func request(t *testing.T) *builder.BuildRequest {
	git := &contentservice.GitInitializer{
		RemoteUri:  setting(t, "KILN_TEST_REPOSITORY"),
		TargetMode: contentservice.CloneTargetMode_REMOTE_BRANCH,
		CloneTaget: setting(t, "KILN_TEST_BRANCH"),
	}
	file := &builder.BuildSourceDockerfile{
		Source:            &contentservice.WorkspaceInitializer{Spec: &contentservice.WorkspaceInitializer_Git{Git: git}},
		DockerfilePath:    "Dockerfile",
		ContextPath:       ".",
		DockerfileVersion: "go",
	}
	total := &builder.BuildRegistryAuthTotal{AllowAll: true}
	return &builder.BuildRequest{
		Source: &builder.BuildSource{From: &builder.BuildSource_File{File: file}},
		Auth:   &builder.BuildRegistryAuth{Mode: &builder.BuildRegistryAuth_Total{Total: total}},
	}
}

func TestAgainstAServer(t *testing.T) {
	ctx := background(t)
	connection := dial(t)
	client := builder.NewImageBuilderClient(connection)

	base := setting(t, "KILN_TEST_BASE")
	resolved, err := client.ResolveBaseImage(ctx, &builder.ResolveBaseImageRequest{Ref: base, Auth: request(t).Auth})
	if err != nil || !strings.Contains(resolved.GetRef(), "@sha256:") {
		t.Fatal(resolved, err)
	}
	_, err = client.ResolveBaseImage(ctx, &builder.ResolveBaseImageRequest{Ref: "NOT A REFERENCE"})
	if status.Code(err) != codes.InvalidArgument {
		t.Fatal(err)
	}

	staged, err := sugar.Build(ctx, client, request(t))
	if err != nil {
		t.Fatal(err)
	}
	if !staged.NeedsBuild {
		t.Fatal("it was never built")
	}
	builds, err := client.ListBuilds(ctx, &builder.ListBuildsRequest{})
	if err != nil || len(builds.GetBuilds()) != 1 || builds.GetBuilds()[0].GetRef() != staged.Ref {
		t.Fatal(builds, err)
	}
	info, err := staged.LogInfo(ctx)
	if err != nil {
		t.Fatal(err)
	}
	// Joined late: what was said before is there all the same.
	time.Sleep(200 * time.Millisecond)
	var followed, copied bytes.Buffer
	if err := (&sugar.Follower{}).Copy(ctx, info, &followed); err != nil {
		t.Fatal(err)
	}
	if _, err := staged.Result(ctx); err != nil {
		t.Fatal(err)
	}
	if err := sugar.CopyLog(ctx, client, &builder.LogsRequest{BuildRef: staged.Ref}, &copied); err != nil {
		t.Fatal(err)
	}
	for _, log := range []string{followed.String(), copied.String()} {
		if !strings.Contains(log, "said at first") || !strings.Contains(log, "said at last") {
			t.Fatal(log)
		}
	}
	again, err := sugar.Build(ctx, client, request(t))
	if err != nil || again.NeedsBuild || again.Ref != staged.Ref {
		t.Fatal(again, err)
	}
	subassembly(t, connection, staged.Ref)
}

func subassembly(t *testing.T, connection *grpc.ClientConn, image string) {
	ctx := background(t)
	client := builder.NewSubassemblyServiceClient(connection)
	if _, err := client.CreateSubassembly(ctx, &builder.CreateSubassemblyRequest{OciReference: image}); err != nil {
		t.Fatal(err)
	}
	for {
		answer, err := client.GetSubassembly(ctx, &builder.GetSubassemblyRequest{OciReference: image})
		if err != nil {
			t.Fatal(err)
		}
		switch answer.GetStatus().GetPhase() {
		case builder.SubassemblyPhase_SUBASSEMBLY_PHASE_CREATING:
			time.Sleep(50 * time.Millisecond)
		case builder.SubassemblyPhase_SUBASSEMBLY_PHASE_AVAILABLE:
			if answer.GetStatus().GetUrl() == "" || len(answer.GetStatus().GetManifest()) == 0 {
				t.Fatal(answer)
			}
			return
		default:
			t.Fatal(answer.GetStatus().GetMessage())
		}
	}
}
