// SPDX-License-Identifier: Apache-2.0

// Builds the Dockerfile of a git repository with kiln.v1, shows what happens while it does, and tells why when it fails.
//
//	go run ./examples/native 127.0.0.1:8080 https://git.example.com/team/app.git main
package main

import (
	"context"
	"fmt"
	"io"
	"log"
	"os"
	"os/signal"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"kiln.dev/sdk/go/builder"
	"kiln.dev/sdk/go/contentservice"
	kilnv1 "kiln.dev/sdk/go/kiln/v1"
)

func main() {
	if len(os.Args) != 4 {
		log.Fatal("usage: native ADDRESS REPOSITORY BRANCH")
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	connection, err := grpc.NewClient(os.Args[1], grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		log.Fatal(err)
	}
	defer connection.Close()
	client := kilnv1.NewKilnClient(connection)

	git := &contentservice.GitInitializer{
		RemoteUri:  os.Args[2],
		TargetMode: contentservice.CloneTargetMode_REMOTE_BRANCH,
		CloneTaget: os.Args[3],
	}
	workspace := &contentservice.WorkspaceInitializer{Spec: &contentservice.WorkspaceInitializer_Git{Git: git}}
	total := &builder.BuildRegistryAuthTotal{AllowAll: true}
	started, err := client.StartBuild(ctx, &kilnv1.StartBuildRequest{
		Files:         &kilnv1.BuildFiles{From: &kilnv1.BuildFiles_Workspace{Workspace: workspace}},
		Outputs:       []*kilnv1.BuildOutput{{Kind: &kilnv1.BuildOutput_Keep{Keep: "example:latest"}}},
		Auth:          &builder.BuildRegistryAuth{Mode: &builder.BuildRegistryAuth_Total{Total: total}},
		RequestLabels: map[string]string{"example": "native"},
		TriggeredBy:   "the example",
	})
	if err != nil {
		log.Fatal(err)
	}
	id := started.Build.BuildId
	if err := watch(ctx, client, id); err != nil {
		log.Fatal(err)
	}
	ended, err := client.GetBuild(ctx, &kilnv1.GetBuildRequest{BuildId: id})
	if err != nil {
		log.Fatal(err)
	}
	if failure := ended.Build.Failure; failure != nil {
		log.Fatalf("%s: %s", failure.Reason, failure.Message)
	}
	for _, step := range ended.Detail.Steps {
		fmt.Fprintf(os.Stderr, "%s took %d ms\n", step.Name, step.GetDurationMs())
	}
	fmt.Println(ended.Build.Ref, ended.Build.Digest)
}

// watch prints the journal of a build until its end. A stream that breaks is gone on with where it was.
func watch(ctx context.Context, client kilnv1.KilnClient, id string) error {
	var received uint64
	for {
		records, err := client.WatchBuild(ctx, &kilnv1.WatchBuildRequest{BuildId: id, Skip: received})
		for err == nil {
			var record *kilnv1.WatchBuildResponse
			if record, err = records.Recv(); err != nil {
				break
			}
			received++
			if output := record.GetOutput(); output != nil {
				os.Stderr.Write(output.Data)
			} else {
				fmt.Fprintln(os.Stderr, record.GetEvent())
			}
		}
		if err == io.EOF {
			return nil
		}
		if status.Code(err) != codes.Unavailable {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(time.Second):
		}
	}
}
