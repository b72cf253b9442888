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

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"kiln.dev/sdk/go/builder"
)

// triesMax is how often a log that brings nothing new is asked for again.
const triesMax = 10

var (
	// pauseFirst is how long is waited before the second try; twice as long before each further one, so that a service has most of a
	// minute to come back. A variable for tests.
	pauseFirst = 100 * time.Millisecond
	// held is how long a connection has to have held to count as one that brought something: steps are silent for long, and there are
	// proxies that end what is silent. A variable for tests.
	held = 10 * time.Second
)

// tries counts the tries that brought nothing.
type tries struct {
	n     int
	pause time.Duration
	// answered is when the service answered the present try; zero before.
	answered time.Time
}

// begin is called before each try.
func (t *tries) begin() { t.answered = time.Time{} }

// answer is called when the service has answered.
func (t *tries) answer() {
	if t.answered.IsZero() {
		t.answered = time.Now()
	}
}

// progress is called when something came that was not known.
func (t *tries) progress() { t.n, t.pause = 0, 0 }

// again waits for the next try, and returns an error when there is none: the one that ended the last.
func (t *tries) again(ctx context.Context, err error) error {
	if !t.answered.IsZero() && time.Since(t.answered) >= held {
		t.progress()
	}
	t.n++
	if t.n >= triesMax {
		return err
	}
	t.pause = max(2*t.pause, pauseFirst)
	timer := time.NewTimer(t.pause)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// CopyLog copies the log of a build, from its first byte, until the build ends: over the same connection as everything else. A build that is
// named by its id is gone on with when the service comes back; under a reference there might be another build by then.
func CopyLog(ctx context.Context, client builder.ImageBuilderClient, request *builder.LogsRequest, to io.Writer) error {
	copied := &counter{to: to}
	var t tries
	for {
		t.begin()
		err := copyOnce(ctx, client, request, copied, &t)
		if request.GetBuildId() == "" || copied.err != nil || ctx.Err() != nil || status.Code(err) != codes.Unavailable {
			return err
		}
		if err := t.again(ctx, err); err != nil {
			return err
		}
	}
}

// copyOnce copies what has not been copied yet, until the stream ends.
func copyOnce(ctx context.Context, client builder.ImageBuilderClient, request *builder.LogsRequest, to *counter, t *tries) error {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	stream, err := client.Logs(ctx, request)
	if err != nil {
		return err
	}
	known := to.n
	for {
		piece, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		t.answer()
		content := piece.GetContent()
		skipped := min(known, int64(len(content)))
		known -= skipped
		if skipped == int64(len(content)) {
			continue
		}
		t.progress()
		if _, err := to.Write(content[skipped:]); err != nil {
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
	var t tries
	for {
		t.begin()
		before := f.Offset
		again, err := f.once(ctx, info, to, &t)
		if err == nil || !again || ctx.Err() != nil {
			return err
		}
		if f.Offset > before {
			t.progress()
		}
		if err := t.again(ctx, err); err != nil {
			return err
		}
	}
}

// once copies until the connection ends. The first result tells whether another try may bring more.
func (f *Follower) once(ctx context.Context, info *builder.LogInfo, to io.Writer, t *tries) (bool, error) {
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
	t.answer()
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
