// SPDX-License-Identifier: Apache-2.0

// Builds the Dockerfile of a git repository and shows its log while it does.
//
//	go run ./examples/build 127.0.0.1:8080 https://git.example.com/team/app.git main
package main

import (
	"context"
	"fmt"
	"log"
	"os"
	"os/signal"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"kiln.dev/sdk/go/builder"
	"kiln.dev/sdk/go/contentservice"
	"kiln.dev/sdk/go/sugar"
)

func main() {
	if len(os.Args) != 4 {
		log.Fatal("usage: build ADDRESS REPOSITORY BRANCH")
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	connection, err := grpc.NewClient(os.Args[1], grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		log.Fatal(err)
	}
	defer connection.Close()
	client := builder.NewImageBuilderClient(connection)

	git := &contentservice.GitInitializer{
		RemoteUri:  os.Args[2],
		TargetMode: contentservice.CloneTargetMode_REMOTE_BRANCH,
		CloneTaget: os.Args[3],
	}
	file := &builder.BuildSourceDockerfile{
		Source:         &contentservice.WorkspaceInitializer{Spec: &contentservice.WorkspaceInitializer_Git{Git: git}},
		DockerfilePath: "Dockerfile",
		ContextPath:    ".",
	}
	total := &builder.BuildRegistryAuthTotal{AllowAll: true}
	staged, err := sugar.Build(ctx, client, &builder.BuildRequest{
		Source:      &builder.BuildSource{From: &builder.BuildSource_File{File: file}},
		Auth:        &builder.BuildRegistryAuth{Mode: &builder.BuildRegistryAuth_Total{Total: total}},
		TriggeredBy: "the example",
	})
	if err != nil {
		log.Fatal(err)
	}
	if staged.NeedsBuild {
		info, err := staged.LogInfo(ctx)
		if err != nil {
			log.Fatal(err)
		}
		if err := (&sugar.Follower{}).Copy(ctx, info, os.Stderr); err != nil {
			log.Fatal(err)
		}
	}
	if _, err := staged.Result(ctx); err != nil {
		log.Fatal(err)
	}
	fmt.Println(staged.Ref)
}
