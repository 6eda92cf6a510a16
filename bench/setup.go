package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/boughdb/bough/api"
	"github.com/boughdb/bough/internal/compute/local"
	"github.com/boughdb/bough/internal/postgres"
	"github.com/boughdb/bough/sdk"
)

// bench is a running server and a plain PostgreSQL of the same build beside it.
type bench struct {
	options
	dir         string
	data        string
	build       postgres.Build
	pgbenchPath string
	cred        *syscall.Credential
	server      *exec.Cmd
	client      *sdk.Client
	pgAddr      string
	storage     string
	api         string // its address
	key         string

	args []string // more flags of the server

	main *target // the first project's endpoint, filled with pgbench data
}

// target is an endpoint that can be connected to.
type target struct {
	project, branch, endpoint string
	uri                       string
}

const readyLimit = 30 * time.Second

func start(ctx context.Context, o options) (b *bench, err error) {
	b = &bench{options: o}
	builds, err := postgres.FindBuilds(ctx, nil)
	if err != nil || len(builds) == 0 {
		return nil, fmt.Errorf("no PostgreSQL found; run: make deps (%w)", err)
	}
	b.build, _ = postgres.Default(builds) // the server's choice
	if b.pgbenchPath, err = findPgbench(builds); err != nil {
		return nil, err
	}
	if b.cred, err = local.Credential(""); err != nil {
		return nil, err
	}
	if b.dir = o.dir; b.dir == "" {
		if b.dir, err = os.MkdirTemp("", "bough-bench-"); err != nil {
			return nil, err
		}
	}
	if err := errors.Join(os.MkdirAll(b.dir, 0o755), os.Chmod(b.dir, 0o755)); err != nil {
		return nil, err
	}
	b.data = filepath.Join(b.dir, "data")
	defer func() {
		if err != nil {
			b.stop()
		}
	}()
	if err := b.launch(ctx); err != nil {
		return nil, err
	}
	b.main, err = b.create(ctx)
	if err != nil {
		return nil, err
	}
	fmt.Fprintln(os.Stderr, "filling the first project …")
	if err := b.resize(ctx, b.main, machineCU(), machineCU()); err != nil {
		return nil, err
	}
	if err := b.runPgbench(ctx, "-q", "-i", "-s", strconv.Itoa(o.scale), b.main.uri); err != nil {
		return nil, err
	}
	return b, b.resize(ctx, b.main, defaultCU, defaultMaxCU)
}

// launch starts the server and waits until it answers.
func (b *bench) launch(ctx context.Context) error {
	log, err := os.OpenFile(filepath.Join(b.dir, "server.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	b.server = exec.Command(b.binary, append([]string{"serve", "--data-dir", b.data, "--pg-listen", "127.0.0.1:0", "--http-listen", "127.0.0.1:0", "--storage", b.options.storage, "--rate-limit", "off"}, b.args...)...)
	b.server.Stdout, b.server.Stderr = log, log
	if err := b.server.Start(); err != nil {
		return err
	}
	return b.await(ctx)
}

// restart kills the server and measures until the next one answers. Computes run on.
func (b *bench) restart(ctx context.Context) (time.Duration, error) {
	if err := b.server.Process.Kill(); err != nil {
		return 0, err
	}
	_ = b.server.Wait()
	if err := os.Remove(filepath.Join(b.data, "admin.json")); err != nil {
		return 0, err
	}
	return timed(func() error { return b.launch(ctx) })
}

// await returns when the server answers.
func (b *bench) await(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, readyLimit)
	defer cancel()
	for {
		raw, err := os.ReadFile(filepath.Join(b.data, "admin.json"))
		var admin struct {
			APIURL string `json:"api_url"`
			APIKey string `json:"api_key"`
			PGAddr string `json:"pg_addr"`
		}
		if err == nil && json.Unmarshal(raw, &admin) == nil {
			if b.client, err = sdk.New(sdk.Options{BaseURL: admin.APIURL, APIKey: admin.APIKey, PollWait: 2 * time.Millisecond}); err != nil {
				return err
			}
			if _, err = b.client.Me(ctx); err == nil {
				b.pgAddr, b.api, b.key = admin.PGAddr, admin.APIURL, admin.APIKey
				info, err := os.ReadFile(filepath.Join(b.data, "pool.json"))
				var pool struct {
					Backend string `json:"backend"`
				}
				if err == nil && json.Unmarshal(info, &pool) == nil {
					b.storage = pool.Backend
				}
				return nil
			}
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("the server does not get ready; see %s: %w", filepath.Join(b.dir, "server.log"), ctx.Err())
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func (b *bench) stop() {
	out, err := exec.Command(b.binary, "down", "--data-dir", b.data).CombinedOutput()
	if err != nil {
		fmt.Fprintf(os.Stderr, "bench: bough down: %v: %s\n", err, out)
		return
	}
	if b.server != nil && b.server.Process != nil {
		_ = b.server.Wait()
	}
	if b.options.dir == "" {
		if err := os.RemoveAll(b.dir); err != nil {
			fmt.Fprintln(os.Stderr, "bench:", err)
		}
	}
}

// findPgbench finds a pgbench, which may be of another version than the servers it measures: not every build has one.
func findPgbench(builds []postgres.Build) (string, error) {
	for _, b := range slices.Backward(builds) {
		if path := b.Tool("pgbench"); !slices.Contains(b.Lacks(), "pgbench") {
			return path, nil
		}
	}
	return "", errors.New("no pgbench on this machine; install Debian's postgresql package")
}

// runPgbench runs pgbench to its end.
func (b *bench) runPgbench(ctx context.Context, args ...string) error {
	if out, err := exec.CommandContext(ctx, b.pgbenchPath, args...).CombinedOutput(); err != nil {
		return fmt.Errorf("pgbench: %w: %s", err, out)
	}
	return nil
}

// create makes a project and waits until it runs. Its compute does not sleep by itself.
func (b *bench) create(ctx context.Context) (*target, error) {
	created, err := b.client.CreateProject(ctx, sdk.ProjectCreate{
		DefaultEndpointSettings: &api.DefaultEndpointSettings{SuspendTimeoutSeconds: new(int64(-1))},
	})
	if err != nil {
		return nil, err
	}
	if _, err := b.client.WaitForOperations(ctx, created.Operations, nil); err != nil {
		return nil, err
	}
	return &target{created.Project.ID, created.Branch.ID, created.Endpoints[0].ID, created.ConnectionUris[0].ConnectionURI}, nil
}

// firstRow connects through the proxy, over TLS with SCRAM, and reads one row.
func (b *bench) firstRow(ctx context.Context, uri string) error {
	cfg, err := pgx.ParseConfig(uri)
	if err != nil {
		return err
	}
	host, port, err := net.SplitHostPort(b.pgAddr)
	if err != nil {
		return err
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		return err
	}
	cfg.TLSConfig = &tls.Config{InsecureSkipVerify: true, ServerName: cfg.Host} // as sslmode=require
	cfg.Host, cfg.Port, cfg.Fallbacks = host, uint16(n), nil
	return firstRowWith(ctx, cfg)
}

// firstRowOf connects as the string says, and reads one row.
func firstRowOf(ctx context.Context, uri string) error {
	cfg, err := pgx.ParseConfig(uri)
	if err != nil {
		return err
	}
	return firstRowWith(ctx, cfg)
}

func firstRowWith(ctx context.Context, cfg *pgx.ConnConfig) error {
	conn, err := pgx.ConnectConfig(ctx, cfg)
	if err != nil {
		return err
	}
	defer conn.Close(ctx)
	var one int
	return conn.QueryRow(ctx, "SELECT 1", pgx.QueryExecModeSimpleProtocol).Scan(&one)
}

func (b *bench) suspend(ctx context.Context, t *target) error {
	out, err := b.client.SuspendEndpoint(ctx, t.project, t.endpoint)
	if err != nil {
		return err
	}
	_, err = b.client.WaitForOperations(ctx, out.Operations, nil)
	return err
}

// plain is a PostgreSQL without Bough: the same files and settings on the host's own file system.
type plain struct {
	b      *bench
	dir    string
	socket string
	stock  bool // has neither our role nor our database
	cmd    *exec.Cmd
}

// plainCopy copies a sleeping branch's files, WAL included, to the host's file system.
func (b *bench) plainCopy(ctx context.Context, t *target, name string) (*plain, error) {
	p := &plain{b: b, dir: filepath.Join(b.dir, name), socket: filepath.Join(b.dir, name+".sock")}
	// -L follows pg_wal, which is a link.
	if out, err := exec.CommandContext(ctx, "cp", "-aL", filepath.Join(b.data, "pool", "volumes", t.branch), p.dir).CombinedOutput(); err != nil {
		return nil, fmt.Errorf("cp: %w: %s", err, out)
	}
	if err := os.MkdirAll(p.socket, 0o700); err != nil {
		return nil, err
	}
	if b.cred != nil {
		return p, os.Chown(p.socket, int(b.cred.Uid), int(b.cred.Gid))
	}
	return p, nil
}

// start starts it and waits for the first row.
func (p *plain) start(ctx context.Context) error {
	var log bytes.Buffer
	p.cmd = exec.Command(p.b.build.Tool("postgres"), "-D", p.dir, "-k", p.socket, "-c", "listen_addresses=")
	p.cmd.Stderr, p.cmd.Dir = &log, "/"
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Credential: p.b.cred, Setsid: true}
	if err := p.cmd.Start(); err != nil {
		return err
	}
	for deadline := time.Now().Add(readyLimit); ; {
		err := p.firstRow(ctx)
		if err == nil {
			return nil
		}
		if time.Now().After(deadline) || ctx.Err() != nil {
			return errors.Join(err, p.stop(), errors.New(log.String()))
		}
		time.Sleep(time.Millisecond)
	}
}

func (p *plain) uri(user, database string) string {
	return fmt.Sprintf("host=%s user=%s dbname=%s", p.socket, user, database)
}

func (p *plain) firstRow(ctx context.Context) error {
	if _, err := os.Stat(filepath.Join(p.socket, postgres.SocketName)); errors.Is(err, fs.ErrNotExist) {
		return err // not even worth a try
	}
	uri := p.uri(postgres.DefaultOwner, postgres.DefaultDatabase)
	if p.stock {
		uri = p.uri(postgres.AdminRole, postgres.AdminDatabase)
	}
	return firstRowOf(ctx, uri)
}

func (p *plain) stop() error {
	if p.cmd == nil || p.cmd.Process == nil {
		return nil
	}
	if err := p.cmd.Process.Signal(syscall.SIGINT); err != nil {
		return err
	}
	return p.cmd.Wait()
}
