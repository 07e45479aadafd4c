package integration_test

import (
	"syscall"
	"testing"

	"github.com/sallyport/sallyport/internal/testnet"
)

// Promise 2: hidden stays hidden when somebody flushes the whole ruleset, and
// who was in stays in.
func TestPromise2AFlushedRulesetIsNoWayIn(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	h.serve(houseConfig("1h"))
	granted, stranger := paths[0], paths[1]
	h.knock(granted, frontSteps)
	h.await(true, 22, granted)
	h.server.Run("nft", "flush", "ruleset")
	h.Await(`the table was removed, and is back with its grants`)
	h.is(true, 22, granted)
	h.is(false, 22, stranger)
	h.knock(stranger, frontSteps)
	h.await(true, 22, paths...)
}

// The way back to public ports must not be taken from the administrator.
func TestDownIsNotUndoneByTheDaemon(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	h.serve(houseConfig("1h"))
	h.is(false, 22, paths...)
	h.server.Run(testnet.Binary(t), "down")
	h.Await("the table was taken down")
	h.await(true, 22, paths...)
	h.knock(paths[0], frontSteps) // must not bring half a table back
	h.Await("error: ")
	h.is(true, 22, paths...)
	h.Signal(syscall.SIGHUP)
	h.Await("the config was read again")
	h.is(false, 22, paths...)
}
