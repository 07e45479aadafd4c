package integration_test

import (
	"io"
	"testing"
)

// Whoever follows, or just sits there, must not keep the administrator from
// 'sallyport confirm', or from knowing why he is not heard.
func TestACrowdLeavesRoomForTheAdministrator(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	h.serve(houseConfig("30s"), "--undo-after=10m")
	for range 8 {
		follower := h.connect()
		io.WriteString(follower, `{"do":"events"}`+"\n")
	}
	const why = "too many connections to the daemon at once; close some 'sallyport events'"
	out, err := h.Tool("events")
	if err == nil {
		t.Error("a ninth follower is let in")
	}
	contains(t, out, why)
	h.must("confirm")
	for range 8 {
		h.connect()
	}
	h.eventually("a connection over the bound is told so", func() bool {
		out, err = h.Tool("status")
		return err != nil
	})
	contains(t, out, why)
	h.eventually("who asks for nothing has to go", func() bool { _, err := h.Tool("status"); return err == nil })
}
