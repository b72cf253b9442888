// SPDX-License-Identifier: Apache-2.0

package sugar

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"kiln.dev/sdk/go/builder"
)

const (
	// triesMax is how often a log that brings nothing new is asked for again.
	triesMax = 6
	// pauseFirst is how long is waited before the second try; twice as long before each further one.
	pauseFirst = 100 * time.Millisecond
)

// CopyLog copies the log of a build, from its first byte, until the build ends: over the same connection as everything else.
func CopyLog(ctx context.Context, client builder.ImageBuilderClient, request *builder.LogsRequest, to io.Writer) error {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	stream, err := client.Logs(ctx, request)
	if err != nil {
		return err
	}
	for {
		piece, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if _, err := to.Write(piece.GetContent()); err != nil {
			return err
		}
	}
}

// Follower reads the log of a build over HTTP, and goes on where a broken connection left it.
type Follower struct {
	// Client is what asks; http.DefaultClient when nil.
	Client *http.Client
	// Offset is the first byte that is wanted, and afterwards the first that has not been copied.
	Offset int64
}

// Copy copies the log from f.Offset until the build ends.
func (f *Follower) Copy(ctx context.Context, info *builder.LogInfo, to io.Writer) error {
	pause := pauseFirst
	for try := 1; ; try++ {
		before := f.Offset
		again, err := f.once(ctx, info, to)
		if err == nil || !again || ctx.Err() != nil {
			return err
		}
		if f.Offset > before {
			try, pause = 1, pauseFirst
		}
		if try >= triesMax {
			return err
		}
		select {
		case <-time.After(pause):
			pause *= 2
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// once copies until the connection ends. The first result tells whether another try may bring more.
func (f *Follower) once(ctx context.Context, info *builder.LogInfo, to io.Writer) (bool, error) {
	address, err := url.Parse(info.GetUrl())
	if err != nil {
		return false, err
	}
	query := address.Query()
	query.Set("offset", strconv.FormatInt(f.Offset, 10))
	address.RawQuery = query.Encode()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, address.String(), nil)
	if err != nil {
		return false, err
	}
	for name, value := range info.GetHeaders() {
		request.Header.Set(name, value)
	}
	client := f.Client
	if client == nil {
		client = http.DefaultClient
	}
	response, err := client.Do(request)
	if err != nil {
		return true, err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return response.StatusCode >= 500, fmt.Errorf("the log's server answered %s", response.Status)
	}
	counted := &counter{to: to}
	_, err = io.Copy(counted, response.Body)
	f.Offset += counted.n
	return counted.err == nil, err
}

// counter counts what was written, and remembers whether writing is what failed.
type counter struct {
	to  io.Writer
	n   int64
	err error
}

func (c *counter) Write(bytes []byte) (int, error) {
	n, err := c.to.Write(bytes)
	c.n += int64(n)
	c.err = err
	return n, err
}
